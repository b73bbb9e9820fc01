"""Ray Data, and only here: the chain of stages, the cluster, dispatch of shards, progress.

Uses storage and run_directory; knows no stage, and no stage knows it."""
