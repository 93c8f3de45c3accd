"""How the server is deployed: several behind HAProxy or Ray Serve, files for containers, Kubernetes and Prometheus."""
