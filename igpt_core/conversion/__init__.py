"""Reads other layouts of weights: OpenAI's, TensorFlow's.

Uses `files`, `images`, `model` and `heads`."""
