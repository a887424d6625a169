"""Networks as files: codes in safetensors, ONNX."""
