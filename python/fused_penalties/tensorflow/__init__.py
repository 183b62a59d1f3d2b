"""The penalty of TensorFlow variables in a loss, as one operation.

`penalty` takes variables or tensors, of TensorFlow or of Keras 3 on TensorFlow, in eager mode, in
`tf.function` and in graphs of TensorFlow 1. Nothing else of the package imports TensorFlow, but for
`fused_penalties.keras` where TensorFlow is Keras' backend.
"""

from __future__ import annotations

from ._penalty import penalty

__all__ = ["penalty"]


def __dir__() -> list[str]:
    return __all__
