"""ONNX files: what can be exported, under which names, and how it is written."""
