"""What actors do, Arrow table in and Arrow table out; each can be called without Ray.

Uses storage, run_directory, inputs and readers."""
