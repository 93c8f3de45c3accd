"""HTTP beneath the routes: connections, middleware, streams, and work off the event loop."""
