"""Finds a model's files, local or fetched from a URI or the Hub. Uses `errors` alone."""
