"""What a model that lies on several devices is split by: groups of ranks, shards, sums in order."""
