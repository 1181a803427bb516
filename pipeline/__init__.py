"""How the weights of a network travelled between its checkpoints."""
