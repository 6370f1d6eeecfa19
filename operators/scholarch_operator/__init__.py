"""kopf operator of Scholarch."""
