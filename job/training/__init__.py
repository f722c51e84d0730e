"""The loop.

Others use evaluated: caveats, require_validation; optimizers: learning_rate; saving: Saving; trainer: Trainer.
"""
