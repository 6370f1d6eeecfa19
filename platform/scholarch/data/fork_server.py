"""Imported by the server that forks data workers, and by nothing else.

What it imports is loaded once and shared by all workers. The server and its workers leave the
trainer's process group, so that Ctrl-C, or a SIGTERM to the group, reaches the trainer alone: it
finishes its step with living workers and ends them itself. They end too when the trainer dies.
"""

import os

import scholarch.data.catalog
import scholarch.data.loader  # noqa: F401

os.setpgid(0, 0)
