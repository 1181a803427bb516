"""Combinations of checkpoints, written as a checkpoint."""
