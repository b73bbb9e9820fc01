"""Jobs submitted to a cluster through Ray's job API. Uses batch, engine and what lies below."""
