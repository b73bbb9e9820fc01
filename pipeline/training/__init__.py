"""Palettes, training runs and probes."""
