"""What ranks do together in a step: the gradients of all become one, and a rank that miscomputes is named."""
