"""Jobs submitted to a cluster through Ray's job API.

Uses storage, engine and batch."""
