"""What one process does with a tile: pull, compute, verify."""
