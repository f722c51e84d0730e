"""What a run is told, and the errors that answer a mistake.

Others use settings: Augmentation, Config, Data, Model, Optimizer, Runtime, SeedOf, Train, REPOSITORY; plain:
differences, flat, recipe, renewed, to_dict, to_yaml; bounds: MOST_THREADS; kinds: MOST, require; command_line:
Arguments, config_name, from_dict, parse, take_options; yaml_text: load_yaml; sweeps: Planned, read; errors: BAD_INPUT,
FAILED, NO_LOCKS, PREEMPTED, DivergedError, FailedError, StoppedEarlyError, UserError, first_line, printable.
"""
