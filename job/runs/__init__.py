"""What a run leaves behind, and what is made of it.

Others use checkpoint: AVERAGE, BEST, DAMAGED, Checkpoints, NotFiniteError, State, below, read; directory: DISK_FULL,
RunDirectory, choose, require_epochs; environment: in_words, of_process, of_start, software; export: export, restored;
files: load_arrays, save_weights, write_whole; reader: Record, Run, number, read, read_below, runs_below; records:
ClassRow, Confusion, Evaluation, Matrix, MetricsLine, Origin, Seconds, TrainLine, ValidationLine; restored: build,
of_run, positions, require_data, restore, trained_on; tracking: tracked.
"""
