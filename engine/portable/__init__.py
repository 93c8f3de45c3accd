"""The forward pass of new tokens over the fork-state cache in torch operators: the reference, on any device."""
