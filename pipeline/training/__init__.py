"""Palettes, training runs and linear probes.

Uses run_directory, inputs, stages and engine."""
