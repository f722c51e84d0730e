"""Networks and their weights.

Others import registry: build, count_parameters; weights: pretrained, fetch, read, load, digest;
footprint: require_room, checkpoint_bytes, memory_bytes, readable; fast.form: fast, own_weights, portable.
"""
