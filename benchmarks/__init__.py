"""Measure speed, memory and reliability; results/ has the outputs."""
