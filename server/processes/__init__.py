"""The HTTP processes of one server: the first, which starts the others, and what they ask each other."""
