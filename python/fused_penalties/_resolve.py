"""Which regularizer goes with which buffer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from .typing import RegularizerLike


class _Rule(NamedTuple):
    label: str
    """Its place in the argument, as errors say it."""
    holds_for: str
    """These words and a name say that it holds."""
    holds: Callable[[str, Any], bool]
    regularizer: RegularizerLike | None


def resolve(
    regularizer: Any, items: Sequence[Any], names: Sequence[str] | None
) -> list[RegularizerLike | None]:
    """One regularizer, or None for no penalty, for each buffer.

    `regularizer` is one callable or None for all of them; a sequence with one for each; or, where
    the buffers have `names`, rules: a mapping of regular expressions to regularizers, or a sequence
    of (rule, regularizer) pairs, in which a rule may also be a function of name and buffer. A
    regular expression holds where it is found anywhere in the name (`re.search`), a function where
    it returns what is true. The first rule that holds for a buffer decides; where none does there
    is no penalty.

    Pairs, because a function is an odd key: it reads badly before a colon, and its place in the
    order, which decides, is not what one looks for in a mapping.

    TypeError for what is not a regularizer; ValueError for a sequence of the wrong length, rules
    for buffers without names, and a rule that is malformed or decides for no buffer at all.
    """
    if isinstance(regularizer, Mapping):
        pairs = regularizer.items()
        return _first_that_holds(
            [_rule(f"regularizer[{key!r}]", key, one) for key, one in pairs], items, names
        )
    if isinstance(regularizer, Sequence) and not isinstance(regularizer, str | bytes):
        if any(isinstance(one, tuple) and not callable(one) for one in regularizer):
            return _first_that_holds(
                [_rule_of_pair(f"regularizer[{k}]", pair) for k, pair in enumerate(regularizer)],
                items,
                names,
            )
        if len(regularizer) != len(items):
            raise ValueError(
                f"regularizer: got a sequence of {len(regularizer)}; wanted one for each of "
                f"{len(items)} buffers"
            )
        for position, one in enumerate(regularizer):
            check(one, f"regularizer[{position}]")
        return list(regularizer)
    check(regularizer, "regularizer")
    return [regularizer] * len(items)


def _first_that_holds(
    rules: Sequence[_Rule], items: Sequence[Any], names: Sequence[str] | None
) -> list[RegularizerLike | None]:
    if names is None:
        raise ValueError(
            "regularizer: got rules for weights without names; wanted the weights as a mapping of "
            "names to arrays"
        )
    named = list(zip(names, items, strict=True))
    deciding = [next((rule for rule in rules if rule.holds(*one)), None) for one in named]
    used = {id(rule) for rule in deciding}
    for rule in rules:
        if id(rule) in used:
            continue
        earlier = {
            name: first.label
            for (name, item), first in zip(named, deciding, strict=True)
            if first is not None and rule.holds(name, item)
        }
        if not earlier:
            raise ValueError(
                f"{rule.label}: {rule.holds_for} none of the {len(names)} names: {some_of(names)}"
                if names
                else f"{rule.label}: {rule.holds_for} nothing, since there are no names"
            )
        taken = some_of([f"{name} by {label}" for name, label in earlier.items()])
        raise ValueError(
            f"{rule.label}: decides nothing, because earlier rules do wherever it holds: {taken}"
        )
    return [None if rule is None else rule.regularizer for rule in deciding]


def some_of(names: Sequence[str]) -> str:
    """Names as an error lists them, which a model may have thousands of."""
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + rest


def _rule_of_pair(label: str, pair: object) -> _Rule:
    if not _is_pair(pair):
        got = f"a tuple of {len(pair)}" if isinstance(pair, tuple) else type(pair).__name__
        raise TypeError(f"{label}: got {got}; wanted a pair of a rule and a regularizer")
    rule, one = pair
    return _rule(label, rule, one)


def _is_pair(value: object) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(value, tuple) and len(value) == 2 and not callable(value)


def _rule(label: str, rule: Any, one: Any) -> _Rule:
    check(one, label)
    if callable(rule):
        return _Rule(label, f"{name_of(rule)} is true for", _truth_of(label, rule), one)
    try:
        pattern = re.compile(rule)
        pattern.search("")
    except (TypeError, re.error) as error:
        raise ValueError(
            f"{label}: got {rule!r}; wanted a regular expression over names, or a function of name "
            f"and array: {error}"
        ) from None
    return _Rule(
        label, f"{pattern.pattern!r} is found in", lambda name, _: bool(pattern.search(name)), one
    )


def _truth_of(label: str, function: Callable[[str, Any], object]) -> Callable[[str, Any], bool]:
    wanted = "wanted a function of name and array that returns True or False"
    try:
        signature = inspect.signature(function)
    except ValueError:  # some that are written in C have none
        signature = None
    try:
        if signature is not None:
            signature.bind("name", "array")
    except TypeError as error:
        raise TypeError(f"{label}: got {name_of(function)} as a rule: {error}; {wanted}") from None

    def holds(name: str, item: Any) -> bool:
        result = function(name, item)
        try:
            return bool(result)
        except (TypeError, ValueError, RuntimeError):  # an array of several truths, say
            raise TypeError(
                f"{label}: {name_of(function)} returned {type(result).__name__} for {name!r}; "
                f"{wanted}"
            ) from None

    return holds


def check(one: object, label: str) -> None:
    """TypeError, beginning with the label, unless `one` can be a regularizer or is None."""
    if inspect.isclass(one):
        raise TypeError(f"{label}: got the class {one.__name__}; wanted an instance of it")
    if one is not None and not callable(one):
        raise TypeError(f"{label}: got {type(one).__name__}; wanted a regularizer or None")


def name_of(regularizer: object) -> str:
    """A regularizer in a few words: a function by its name, whose repr is an address."""
    return str(getattr(regularizer, "__name__", None) or repr(regularizer))
