"""Files: written whole or not at all; networks as safetensors and as ONNX."""
