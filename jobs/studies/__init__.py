"""Studies of what trajectories depend on, and experiments on what their redundancy is worth."""
