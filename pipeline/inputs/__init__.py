"""From --input to a plan: files found, recognized, counted, cut into shards.

Uses storage and run_directory."""
