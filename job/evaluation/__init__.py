"""How good a network is, exactly."""
