"""A finished run's pictures, tokens or embeddings in another format.

Uses storage, run_directory, inputs, stages and engine."""
