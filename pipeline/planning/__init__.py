"""From a source and a request to a plan: which bytes of which files make which tiles.

Built from names and headers alone; moves no weights.
"""
