"""Runs and models in MLflow, which is imported inside functions only."""
