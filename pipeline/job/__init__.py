"""One job: what is requested, who executes it, estimates, figures, the written run."""
