"""Working through a plan's tiles: in this process, or on Ray. The only package that imports Ray."""
