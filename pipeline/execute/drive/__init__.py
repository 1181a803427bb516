"""Who gets which tile when, without an engine."""
