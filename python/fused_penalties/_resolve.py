"""Which regularizer goes with which buffer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RegularizerLike = Callable[[Any], Any]
"""From one buffer of weights to its penalty: a scalar, or None for no penalty."""

Regularizers = (
    RegularizerLike | Sequence[RegularizerLike | None] | Mapping[str, RegularizerLike | None] | None
)
"""One for all buffers, one per buffer in their order, or regular expressions over their names."""


def resolve(
    regularizer: Any, count: int, names: Sequence[str] | None
) -> list[RegularizerLike | None]:
    """One regularizer, or None for no penalty, for each of `count` buffers.

    `regularizer` is one callable or None for all of them; a sequence with one for each; or, where
    the buffers have `names`, a mapping of regular expressions: the first pattern that is found
    anywhere in the name (`re.search`) decides, and a name in which none is found has no penalty.

    TypeError for what is not a regularizer; ValueError for a sequence of the wrong length, a
    mapping for buffers without names, and a pattern that is malformed or found in no name at all.
    """
    if isinstance(regularizer, Mapping):
        return _by_name(regularizer, names)
    if isinstance(regularizer, Sequence) and not isinstance(regularizer, str | bytes):
        if len(regularizer) != count:
            raise ValueError(
                f"regularizer: got a sequence of {len(regularizer)}; wanted one for each of "
                f"{count} buffers"
            )
        for position, one in enumerate(regularizer):
            check(one, f"regularizer[{position}]")
        return list(regularizer)
    check(regularizer, "regularizer")
    return [regularizer] * count


def _by_name(
    regularizer: Mapping[str, RegularizerLike | None], names: Sequence[str] | None
) -> list[RegularizerLike | None]:
    if names is None:
        raise ValueError(
            "regularizer: got a mapping of patterns for weights without names; wanted the weights "
            "as a mapping of names to arrays"
        )
    patterns = []
    for pattern, one in regularizer.items():
        check(one, f"regularizer[{pattern!r}]")
        try:
            compiled = re.compile(pattern)
            used = any(map(compiled.search, names))
        except (TypeError, re.error) as error:
            raise ValueError(
                f"regularizer[{pattern!r}]: wanted a regular expression over names: {error}"
            ) from None
        if not used:
            raise ValueError(
                f"regularizer[{pattern!r}]: found in none of the {len(names)} names: "
                f"{', '.join(names)}"
            )
        patterns.append((compiled, one))
    return [next((one for p, one in patterns if p.search(name)), None) for name in names]


def check(one: object, label: str) -> None:
    """TypeError, beginning with the label, unless `one` can be a regularizer or is None."""
    if inspect.isclass(one):
        raise TypeError(f"{label}: got the class {one.__name__}; wanted an instance of it")
    if one is not None and not callable(one):
        raise TypeError(f"{label}: got a {type(one).__name__}; wanted a regularizer or None")
