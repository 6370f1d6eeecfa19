"""The one trainer: learner, parallelism, optimizer groups, checkpoints, health, launcher."""
