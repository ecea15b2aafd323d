"""Runtimes a program can be handed to: ONNX, onnxruntime, TensorRT."""
