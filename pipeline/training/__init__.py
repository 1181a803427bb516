"""What is known of a training besides its weights: its settings, and its metrics by step.

    settings.py  hyperparameters as flat JSON: of options, files and configurations
    metrics.py   curves of metrics by step, however they come in
    rows.py      rows of CSV, JSON lines and Parquet
    logs.py      the logs that trainers write, and who reads which
    events.py    TensorBoard's event files, where `tensorboard` is installed

All of it is outside data: bounded in size and depth, and what is not understood is named. None of it
decides a figure. Source: docs/decisions/training.md.
"""
