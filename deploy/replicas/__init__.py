"""The parts of `deploy.ray_serve`, from the client inwards: ingress, exchange, prefix_router, replica."""
