"""The workflow of TensorFlow 1 on plain arrays; its names are those of `fused_penalties` itself."""
