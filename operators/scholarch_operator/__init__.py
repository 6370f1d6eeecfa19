"""The Kubernetes operator of Scholarch. Nothing here yet: it comes in an issue of its own."""
