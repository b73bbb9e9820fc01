"""A model's files, wherever they lie."""
