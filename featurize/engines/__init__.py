"""The programs that compute a frozen network: TensorFlow, OpenVINO and ONNX Runtime.

OpenVINO and ONNX Runtime compute the same file: one ONNX network that takes images, ``uint8 (n, height, width, 3)``, and gives
features, ``float32 (n, feature_dim)``, with the preparation of its input inside. Which program runs, and how precisely, is
measured.
"""
