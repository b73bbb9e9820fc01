"""Trains, scores and probes models. Uses every room above but `conversion`, and `heads`."""
