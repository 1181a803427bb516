"""Ray: its session, the workers as actors, pull tasks, metrics. Nothing else imports it."""
