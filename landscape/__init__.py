"""Probes of the loss surface around a quantized network."""
