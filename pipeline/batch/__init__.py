"""A batch job from its options to its report; and the same job in a dataset of the caller's.

Uses storage, run_directory, inputs, stages, engine and report."""
