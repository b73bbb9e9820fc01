"""The transformer and its weights."""
