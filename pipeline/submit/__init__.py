"""A job handed to a cluster through Ray's job API."""
