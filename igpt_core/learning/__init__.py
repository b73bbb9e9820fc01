"""Trains, scores and probes models. Uses `images`, `model` and `heads`."""
