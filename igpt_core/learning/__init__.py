"""Objectives, training, features, scores and probes."""
