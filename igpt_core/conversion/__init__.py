"""Reads other layouts of weights: OpenAI's, TensorFlow's. Uses every room above and `heads`."""
