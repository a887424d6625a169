"""Paths of optimizers, and what is compared along them."""
