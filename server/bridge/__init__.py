"""The event loop's side and the engine's side, and what passes between them."""
