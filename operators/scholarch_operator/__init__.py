"""The Kubernetes operator of Scholarch: a `TrainingRun` in, the objects of a run out.

`plan.plan` is pure and decides everything; `handlers` only watches, calls it and applies what it says.
"""
