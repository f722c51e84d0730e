"""Networks and their weights.

Others import registry: builder, build, count_parameters, described; frozen: freeze, train, normalised, moving; weights:
pretrained, fetch, read, load, put, digest; fingerprint: digest, of, of_weights, text; footprint: require_room,
checkpoint_bytes, memory_bytes, readable; fast.form: fast, own_weights, portable.
"""
