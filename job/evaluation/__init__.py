"""How good a network is, exactly.

Others use arms: among, below, compare; comparison: Finished, choose, compare, read; metrics: class_accuracy, report;
predictions: Predictions, predict; reference: published; samples: Samples, keep, read.
"""
