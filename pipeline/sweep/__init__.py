"""Trainings of small networks over a grid of settings, whose checkpoints are then analysed."""
