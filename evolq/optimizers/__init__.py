"""Searches of scales and bits, and what is common to them."""
