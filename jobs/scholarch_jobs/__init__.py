"""TorchX components of Scholarch."""
