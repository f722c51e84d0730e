"""The same numbers, faster: delete this folder, and only speed is lost, and ``model.features_once`` with it.

``form`` is its one door: ``fast`` picks the form for a device, ``own_weights`` leads back.
"""
