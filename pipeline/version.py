"""The version of these sources.

It stands here and nowhere else (pyproject.toml reads it), since sources run where nothing is installed:
`ray job submit --working-dir .` on a cluster that has the dependencies.
"""

VERSION = "0.1.0"
