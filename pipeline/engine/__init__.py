"""Ray Data, and only here: the chain of stages, the cluster, dispatch of shards, progress.

Knows no stage, and no stage knows it."""
