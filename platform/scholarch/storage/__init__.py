"""Files of a run: written whole or not at all, and by one process at a time."""
