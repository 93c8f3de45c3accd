"""How the server is deployed: replicas under Ray Serve, and files for containers, Kubernetes and Prometheus."""
