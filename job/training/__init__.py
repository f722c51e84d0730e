"""The loop.

Others use evaluated: require_validation; optimizers: learning_rate; trainer: Trainer.
"""
