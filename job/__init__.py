"""Train and evaluate image classifiers on one process or on many, with the same numbers."""
