"""How good a network is, exactly.

Others use arms: LOOKED_AT, among, below, compare, is_decided; comparison: Finished, choose, compare, read; metrics:
class_accuracy, report; predictions: Predictions, predict; reference: published; samples: Samples, keep, read.
"""
