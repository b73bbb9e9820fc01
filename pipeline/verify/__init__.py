"""Whether a run directory holds what it must, and whether it can be computed again.

Uses options, storage, run_directory, inputs, stages, engine and batch."""
