"""The loop.

Others use evaluated: caveats, require_validation; optimizers: learning_rate; replay: Outcome, replay; saving: Saving;
trainer: Trainer.
"""
