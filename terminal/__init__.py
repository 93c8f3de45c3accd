"""The commands that run the engine in a terminal: `thoughtbubbles generate` and `thoughtbubbles chat`."""

if __name__ != "thoughtbubbles.terminal":  # imported by its folder in a checkout: each module would exist twice
    raise ImportError("import thoughtbubbles.terminal instead of terminal")
