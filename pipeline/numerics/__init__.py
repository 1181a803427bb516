"""Figures of a trajectory, as pure functions of its Gram matrix."""
