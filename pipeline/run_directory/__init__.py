"""What lies where in a run directory, who may write it, and how far it is.

Uses errors, rows, shards and storage; neither torch nor Ray."""
