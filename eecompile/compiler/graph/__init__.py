"""What is done to ONNX graphs, one pass per module."""
