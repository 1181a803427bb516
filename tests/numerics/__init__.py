"""Tests of the figures, against definitions on explicit weights."""
