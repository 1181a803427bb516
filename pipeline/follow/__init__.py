"""Following a run that still grows: each checkpoint is read once, figures between them are estimated."""
