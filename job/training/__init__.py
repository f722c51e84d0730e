"""The loop.

Others use optimizers: learning_rate; trainer: Trainer.
"""
