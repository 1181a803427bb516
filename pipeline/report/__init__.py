"""The report: one page that shows the runs of a store and needs nothing else; pictures of them.

    content.py     what goes into the page: SQL over the store's views
    maps.py        trajectory maps by scope, as many as the page may hold
    parts.py       windows along the paths, and where the training changed
    training.py    what the training logged, thinned
    paths.py       what stands beside a run: the random walk, the straight line
    comparison.py  settings in which runs differ, and indicators over seeds
    packing.py     arrays as text, in one to three bytes a value
    figures.py     the pictures of `--figures`
    page.py        the page: its content, styles and scripts in one file
    page/          the styles and scripts themselves

Source: docs/decisions/report.md.
"""
