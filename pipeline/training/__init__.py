"""Palettes, training runs and linear probes.

Uses options, storage, run_directory, inputs, stages and engine."""
