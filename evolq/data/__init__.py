"""Images and models from outside."""
