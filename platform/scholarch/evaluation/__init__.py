"""Evaluations of a frozen backbone. Each has the same face: `name`, `run(features) -> metrics`."""
