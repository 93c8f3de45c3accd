"""Measurements of speed, memory and reliability; results/ holds what each printed."""
