"""Entry points: from the command line to the pipeline and back to an exit code."""
