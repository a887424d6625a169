"""A quantizer core and the Evol-Q optimizer."""
