"""The commands that run the engine in a terminal: `thoughtbubbles generate` and `thoughtbubbles chat`."""

if __name__ != "thoughtbubbles.terminal":  # in a checkout, which would have each module a second time
    raise ImportError("import thoughtbubbles.terminal instead of terminal")
