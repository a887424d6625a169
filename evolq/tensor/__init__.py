"""Tensors: quantizers, observers, and arithmetic on quantized values."""
