"""Studies: configurations of sweeps, and experiments with what they have trained (`docs/studies/`)."""
