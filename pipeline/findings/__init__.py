"""What is wrong, or worth knowing, about the checkpoints themselves (docs/method.md, §3)."""
