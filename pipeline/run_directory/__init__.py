"""What lies where in a run directory, who may write it, and how far it is.

Uses storage."""
