"""Holds the transformer and reads and writes its weights. Uses `files` and `images`."""
