"""Networks as graphs with quantizers, and the ways to run them."""
