"""The penalty of a PyTorch model, in its loss or in its optimizer's steps.

`Penalty` knows a model's parameters: called, it is the penalty as one operation, differentiated as
another one; attached to an optimizer, its gradient is added, or its proximal step made, in one pass
at each step. `penalty` is the same operation for any list of tensors, and `clip_grad_norm_` takes
the place of torch's. Nothing else of the package imports torch.
"""

from __future__ import annotations

from ._attach import Handle
from ._clip import clip_grad_norm_
from ._penalty import Penalty, penalty

__all__ = ["Handle", "Penalty", "clip_grad_norm_", "penalty"]


def __dir__() -> list[str]:
    return __all__
