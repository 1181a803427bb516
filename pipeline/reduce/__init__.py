"""From the results of tiles to figures: sums by scope in a fixed order, then pure functions of S."""
