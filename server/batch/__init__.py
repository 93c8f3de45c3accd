"""`thoughtbubbles batch`: answer a file of requests with the engine alone, without HTTP."""
