"""Between event loop and engine: requests go to the engine's thread or process, events come back. No HTTP in here."""
