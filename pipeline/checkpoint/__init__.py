"""What a checkpoint is: names, headers, shards, roles of tensors. Pure functions and data."""
