"""What is done to ONNX graphs, one pass a module."""
