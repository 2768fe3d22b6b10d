"""Export to ONNX and Core ML, verified on Linux."""
