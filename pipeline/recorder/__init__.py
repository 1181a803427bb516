"""Recording a training as checkpoints, from the loop that trains."""
