"""How good a network is, exactly.

Others use arms: LOOKED_AT, among, below, compare; comparison: Finished, choose, compare, of_chance, read; metrics:
class_accuracy, report; predictions: Predictions, predict; reference: published; samples: Samples, keep, read.
"""
