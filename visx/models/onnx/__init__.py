"""ONNX files: `reading` (checked without running anything), `runtime` (sessions of onnxruntime), `box` (what scores), `converted`
(the torch module that computes the same), `beside` (the configuration beside a file)."""
