"""What ranks do together in a step: the gradients of all become one."""
