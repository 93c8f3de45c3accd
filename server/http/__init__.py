"""HTTP below the routes: connections, middleware, streams, disconnects, and work that leaves the event loop."""
