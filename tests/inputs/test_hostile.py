"""Objects that return anything, or call back in the middle of a call.

What comes of it is an error that names the item, or the right value; never a crash.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import capsules
import fused_penalties as fp
import oracle
from fused_penalties import contrib
from fused_penalties.regularizers import L1, L1L2, L2
from oracle import hexes
from wrapped import OnlyDLPack

W = np.array([[1, -2], [-3, 4]], np.float32)
USES: dict[str, Callable[[Any], Any]] = {
    "weights": lambda x: fp.sums([W, x]),
    "partial weights": lambda x: fp.partial_sums([W, x]),
    "penalty of weights": lambda x: fp.penalty([W, x], L2(1.0)),
    "plan weights": lambda x: fp.Plan([W, x], [L2(1.0), contrib.l1_regularizer(1.0)]),
    "grads": lambda x: fp.Plan([W, W.copy()], L2(1.0)).add_grad([np.zeros_like(W), x]),
    "clipped grads": lambda x: fp.Plan([W, W.copy()], L2(1.0)).clip_grad_norm([W.copy(), x], 1.0),
}
uses = pytest.mark.parametrize("use", USES)


class Returns(OnlyDLPack):
    """Has its own idea of what DLPack is."""

    dtype = np.dtype(np.float32)

    def __init__(self, made: Any, device: Any = (1, 0)) -> None:
        self.made, self.device = made, device

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.made

    def __dlpack_device__(self) -> Any:
        return self.device


def used() -> Any:
    returns = Returns(W.copy().__dlpack__())
    np.from_dlpack(returns)
    return returns.made


WRONG: dict[str, Callable[[], Any]] = {
    "a used capsule": used,
    "None": lambda: None,
    "an int": lambda: 42,
    "a str": lambda: "dltensor",
    "a list": lambda: [1.0, 2.0],
    "a device": lambda: (1, 0),
    "another device": lambda: (2, 0),
    "a triple": lambda: (1, 2, 3),
    "another capsule": lambda: capsules.Framework.__dlpack_c_exchange_api__,  # type: ignore[attr-defined]
}


@uses
@pytest.mark.parametrize("wrong", WRONG)
def test_what_dlpack_returns(use: str, wrong: str) -> None:
    with pytest.raises(TypeError, match=rf"^{use.split()[-1]}\[1\]: .*returned "):
        USES[use](Returns(WRONG[wrong]()))


@uses
@pytest.mark.parametrize(
    "device", [None, (), (1,), (1, 0, 0), "ab", 7, (None, 0), (2**40, 0), (1, -(2**40)), (1e400, 0)]
)
def test_what_the_device_is(use: str, device: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{use.split()[-1]}\[1\]: DLPack cannot export"):
        USES[use](Returns(W.copy().__dlpack__(), device))


class OnlyArray:
    dtype = np.dtype(np.float32)

    def __init__(self, made: Any) -> None:
        self.made = made

    def __array__(self, *arguments: Any, **named: Any) -> Any:
        return self.made


@uses
@pytest.mark.parametrize("made", [None, 42, [1.0, 2.0], W.tobytes()])
def test_what_array_returns(use: str, made: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{use.split()[-1]}\[1\]: NumPy cannot read"):
        USES[use](OnlyArray(made))


class OwnView(np.ndarray):
    def view(self, *arguments: Any) -> Any:
        return [1, 2, 3]


def test_a_subclass_whose_view_is_no_array() -> None:
    mine = np.ndarray.view(W.copy(), OwnView)
    assert fp.sums([mine]).abs.tolist() == [10.0]
    grad = np.ndarray.view(np.zeros_like(W), OwnView)
    fp.Plan([mine], L2(0.5)).add_grad([grad])
    assert np.array_equal(np.asarray(grad), W)


# A tensor by hand.

NUMBERS = np.arange(1, 13, dtype=np.float32)


def made(
    shape: Any = (3, 4),
    strides: Any = (4, 1),
    versioned: bool = True,
    major: int = 1,
    **fields: Any,
) -> Returns:
    """Twelve numbers in a capsule whose fields are these."""
    pointer = ctypes.POINTER(ctypes.c_int64)
    arrays = [x if x is None else (ctypes.c_int64 * len(x))(*x) for x in (shape, strides)]
    pointers = [ctypes.cast(x, pointer) if x is not None else pointer() for x in arrays]
    tensor = capsules.Tensor(
        NUMBERS.ctypes.data, capsules.Device(1, 0), len(shape or ()), capsules.DataType(2, 32, 1),
        *pointers, 0,
    )  # fmt: skip
    for name, value in fields.items():
        setattr(tensor, name, value)
    return Returns(capsules.wrapped(tensor, arrays, versioned=versioned, major=major))


HUGE = 1 << 62
UNSOUND: dict[str, dict[str, Any]] = {
    "negative rank": {"ndim": -1},
    "rank above NumPy's": {"ndim": 65},
    "largest rank": {"ndim": 2**31 - 1},
    "no shape": {"shape": None, "ndim": 2},
    "no shape and no strides": {"shape": None, "strides": None, "ndim": 2},
    "negative shape": {"shape": (3, -4)},
    "two negative shapes": {"shape": (-3, -4)},
    "least shape": {"shape": (-(2**63), 1)},
    "a product that wraps to 0": {"shape": (1 << 32, 1 << 32), "strides": None},
    "a product that wraps to 0 of one element": {"shape": (HUGE, 4), "strides": (0, 0)},
    "a product that wraps to 12": {"shape": (HUGE + 3, 4), "strides": (0, 0)},
    "bytes that wrap": {"shape": (HUGE,), "strides": None},
    "a stride that wraps to 0": {"shape": (12,), "strides": (HUGE,)},
    "the least stride": {"shape": (12,), "strides": (-(2**63),)},
    "a reach that wraps": {"shape": (1 << 40,), "strides": (1 << 40,)},
    "reaches that wrap together": {"shape": (2, 2, 2), "strides": [(1 << 61) - 1] * 3},
    "a reach below 0": {"shape": (2,), "strides": (-(1 << 60),)},
    "an offset that wraps": {"byte_offset": 2**64 - 4},
    "no data": {"data": None},
    "no data but an offset": {"data": None, "byte_offset": NUMBERS.ctypes.data},
    "no device": {"device": capsules.Device(2, -1)},
}


@uses
@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("unsound", UNSOUND)
def test_fields_that_are_not_sound(use: str, unsound: str, versioned: bool) -> None:
    before = capsules.alive()
    with pytest.raises(ValueError, match=rf"^{use.split()[-1]}\[1\]: "):
        USES[use](made(versioned=versioned, **UNSOUND[unsound]))
    assert capsules.alive() == before


@uses
@pytest.mark.parametrize("major", [0, 2, 2**32 - 1])
def test_another_major_version(use: str, major: int) -> None:
    """Nothing after the version is known to be where it was."""
    with pytest.raises(TypeError, match=rf"^{use.split()[-1]}\[1\]: DLPack {major}\.0 is not"):
        USES[use](made(shape=None, major=major, data=16, ndim=7))


SOUND: dict[str, tuple[dict[str, Any], float]] = {
    "C order": ({}, 78.0),
    "no strides": ({"strides": None}, 78.0),
    "an offset": ({"shape": (2,), "strides": (1,), "byte_offset": 40}, 11.0 + 12.0),
    "backwards": ({"shape": (3,), "strides": (-4,), "byte_offset": 32}, 9.0 + 5.0 + 1.0),
    "rank 0": ({"shape": None, "strides": None}, 1.0),
    "one element, whose strides mean nothing": (
        {"shape": (1, 1), "strides": (2**63 - 1, -(2**63))}, 1.0,
    ),
    "nothing": ({"shape": (HUGE, 0, HUGE), "strides": None, "data": None}, 0.0),
    "nothing, of any strides": ({"shape": (0, HUGE), "strides": (HUGE, -HUGE), "data": None}, 0.0),
    "repeated": ({"shape": (1000, 2), "strides": (0, 1)}, 3000.0),
}  # fmt: skip


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("sound", SOUND)
def test_fields_that_are_sound(sound: str, versioned: bool) -> None:
    fields, expected = SOUND[sound]
    before = capsules.alive()
    assert fp.sums([W, made(versioned=versioned, **fields)]).abs.tolist() == [10.0, expected]
    assert capsules.alive() == before


class Again(Returns):
    """Gives a new capsule each time, and knows all of them."""

    def __init__(self) -> None:
        super().__init__([])

    def __dlpack__(self, **arguments: Any) -> Any:
        self.made.append(made().made)
        return self.made[-1]


def test_a_plan_takes_the_capsule_so_that_nobody_else_can() -> None:
    """The memory would go with the other array that was made of it."""
    before = capsules.alive()
    again = Again()
    plan = fp.Plan([again], L1(1.0))
    kept = Returns(again.made[0])
    with pytest.raises((BufferError, TypeError, ValueError)):
        np.from_dlpack(kept)
    with pytest.raises(TypeError, match="used already"):
        fp.sums([kept])
    assert (plan.value(), capsules.alive()) == (78.0, before + 1)
    del plan
    assert capsules.alive() == before


def test_a_plan_refuses_what_gives_a_capsule_only_once() -> None:
    """It could not find out later where the memory is."""
    before = capsules.alive()
    with pytest.raises(TypeError, match=r"^weights\[0\]: .*used already"):
        fp.Plan([made()], L1(1.0))
    assert capsules.alive() == before


# Numbers that run Python code.


class Index:
    def __init__(self, made: Any = 2) -> None:
        self.made, self.asked = made, 0

    def __index__(self) -> Any:
        self.asked += 1
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


def test_threads_are_asked_once() -> None:
    for use in (fp.sums, fp.partial_sums):
        threads = Index()
        use(W, threads=threads)  # type: ignore[operator]
        assert threads.asked == 1
    threads = Index()
    plan = fp.Plan([W], L2(1.0), threads=threads)  # type: ignore[arg-type]
    for _ in range(3):
        plan.value()
        plan.add_grad([np.zeros_like(W)])
        plan.clip_grad_norm([np.zeros_like(W)], 1.0)
        plan.sums()
    assert threads.asked == 1


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (KeyError("mine"), KeyError),
        ("2", TypeError),
        (None, TypeError),
        (0, ValueError),
        (-(10**40), ValueError),
    ],
)
def test_threads_that_fail(made: Any, error: type[Exception]) -> None:
    for use in (fp.sums, fp.partial_sums, lambda w, threads: fp.Plan([w], None, threads=threads)):
        with pytest.raises(error):
            use(W, threads=Index(made))  # type: ignore[operator]
    assert fp.sums(W, threads=Index(10**40)).total_abs == 10.0  # type: ignore[arg-type]


# Calls that are made in the middle of another.

CALLERS: dict[str, Callable[[np.ndarray, Callable[[], None]], Any]] = {}


def caller(make: Callable[[np.ndarray, Callable[[], None]], Any]) -> Any:
    CALLERS[make.__name__] = make
    return make


@caller
def of_dlpack(grad: np.ndarray, call: Callable[[], None]) -> Any:
    class Calls(OnlyDLPack):
        def __dlpack__(self, **arguments: Any) -> Any:
            call()
            return super().__dlpack__(**arguments)

    return [None, Calls(grad)]


@caller
def of_an_iterator(grad: np.ndarray, call: Callable[[], None]) -> Any:
    def each() -> Any:
        yield None
        call()
        yield grad

    return each()


@caller
def of_a_mapping(grad: np.ndarray, call: Callable[[], None]) -> Any:
    class Calls(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            call()
            return super().items()

    return Calls(w1=grad)


@pytest.mark.parametrize("how", CALLERS)
@pytest.mark.parametrize("use", ["add_grad", "value_and_grad"])
def test_a_plan_that_gets_other_strengths_during_a_call(use: str, how: str) -> None:
    """The call has the strengths that it began with, and whatever comes after has the new ones."""
    n = 3000
    w = {f"w{k}": np.full(n, k + 1.0, np.float32) for k in range(2)}
    for new in (L1L2(3.0, 5.0), None, [L2(1.0), None], [None, np.sum], [L2(1.0), L2(0.0)]):
        grad = np.zeros(n, np.float32)
        plan = fp.Plan(w, [None, L1L2(1.0, 2.0)])
        change = partial(plan.set_regularizer, new)
        value = getattr(plan, use)(CALLERS[how](grad, change))
        assert (grad == 1.0 + 2 * 2.0 * 2.0).all()
        assert value in (None, n * (1.0 * 2.0 + 2.0 * 4.0))
        assert plan.value() == fp.penalty(w, new)


def test_strengths_that_change_beside_what_reads() -> None:
    w = [np.full(n, 2.0, np.float32) for n in (5, 100_000, 7)]
    choices = [
        [L2(1.0), None, L1(1.0)],
        None,
        contrib.sum_regularizer([L2(2.0), lambda x: 1000.0]),
        [None, L1(1.0), lambda x: 3.0],
    ]
    plan = fp.Plan(w, choices[0])
    expected = [fp.Plan(w, one).values().tolist() for one in choices]
    done = threading.Event()
    wrong = []

    def read() -> None:
        while not done.is_set():
            values = plan.values().tolist()
            value = plan.value()
            if values not in expected or value not in [sum(one) for one in expected]:
                wrong.append((values, value))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(2000):
        plan.set_regularizer(choices[turn % len(choices)])
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


def core_plan(weights: list[Any], keep: bool = True) -> Any:
    return fp._core.bind(weights, None, False, None, keep, False, False)


def test_strengths_of_another_plan() -> None:
    core, other = (core_plan([W] * n) for n in (1, 2))
    strengths = other.strengths([1.0] * 2, [1.0] * 2)
    grads = [np.zeros_like(W)]
    for call in (
        lambda: core.value(strengths),
        lambda: core.values(strengths),
        lambda: core.terms(strengths),
        lambda: core.add_grad(strengths, grads, 1.0),
        lambda: core.value_and_grad(strengths, grads, 1.0),
        lambda: core.prox(strengths, 1.0),
        lambda: core.decay(strengths, 0.1),
    ):
        with pytest.raises(ValueError, match="another plan's"):
            call()


def test_changes_by_a_plan_for_one_read() -> None:
    """It does not keep what they would have to look at."""
    core = core_plan([W], keep=False)
    strengths = core.strengths(1.0, 1.0)
    assert core.value(strengths) == 40.0
    for call in (
        lambda: core.add_grad(strengths, [np.zeros_like(W)], 1.0),
        lambda: core.clip_grad_norm([np.zeros_like(W)], 1.0),
        lambda: core.prox(strengths, 1.0),
        lambda: core.decay(strengths, 0.1),
    ):
        with pytest.raises(ValueError, match="made for one read"):
            call()


def test_terms_of_another_length() -> None:
    core = core_plan([W, W])
    for wrong in (np.zeros(1), np.zeros(3), np.zeros((2, 1, 1))):
        with pytest.raises(ValueError, match=r"terms|dimension|ndim"):
            core.rounded_each(wrong)
    with pytest.raises(ValueError, match="as many of each"):
        fp._core.terms(np.zeros(2), np.zeros(3), [0.0] * 2, [0.0] * 2)
    with pytest.raises(ValueError, match="got 3; wanted 2"):
        core.strengths([1.0] * 3, 0.0)


class Shrinks(list):  # type: ignore[type-arg]
    """Says that it has as many as were wanted, and gives more."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return iter([np.zeros_like(W)] * 5)


def test_a_list_of_another_length_than_it_says() -> None:
    core = core_plan([W])
    with pytest.raises(ValueError, match=r"^grads: got 5; wanted one for each of 1"):
        core.clip_grad_norm(Shrinks(), 1.0)


# Limbs that are replaced.


@pytest.mark.parametrize(
    "shape", [(1, 1, 70), (1, 2, 69), (1, 3, 70), (2, 70), (140,), (1, 2, 70, 1), (70, 2, 1), ()]
)
def test_limbs_of_another_shape(shape: tuple[int, ...]) -> None:
    part = fp.partial_sums([np.ones(100, np.float32)])
    limbs = np.ones(shape, np.int64)
    with pytest.raises(ValueError, match=r"^limbs: got int64 of shape"):
        part.limbs = limbs
    for function in (fp._core.sums_of_limbs, fp._core.canonical_limbs):
        with pytest.raises(ValueError, match=r"^limbs: got an array of shape"):
            function(limbs)
    assert part.sums().abs.tolist() == [100.0]


def test_limbs_that_lose_their_shape_in_place() -> None:
    part = fp.partial_sums([np.ones(100, np.float32)])
    part.limbs.resize((1, 1, 70), refcheck=False)
    with pytest.raises(ValueError, match=r"^limbs: got an array of shape \(1, 1, 70\)"):
        part.sums()


@pytest.mark.parametrize("at", [0, 67, 68, 69])
def test_limbs_that_become_negative_in_place(at: int) -> None:
    part = fp.partial_sums([np.zeros(3), np.zeros(3)])
    part.limbs[1, 0, at] = -1
    with pytest.raises(ValueError, match=r"^limbs: got a negative sum"):
        part.sums()
    with pytest.raises(ValueError, match=r"^limbs: got a negative sum"):
        part + part


def test_any_limbs_at_all() -> None:
    """Digits of any sign and size are the number that they add up to."""
    rng = np.random.default_rng(0)
    for turn in range(200):
        limbs = rng.integers(-(2**63), 2**63, (1, 2, 70), endpoint=False)
        limbs[..., 67] >>= turn % 63
        limbs[..., 68:] = rng.integers(0, 2, (1, 2, 2)) * (turn % 2)
        expected = []
        for row in limbs[0].tolist():
            exact = oracle.Exact()
            exact.units = sum(digit << 32 * k for k, digit in enumerate(row[:68]))
            exact.nans, exact.infs = row[68:]
            expected.append(exact)
        if any(exact.units < 0 for exact in expected):
            with pytest.raises(ValueError, match=r"^limbs: got a negative sum"):
                fp.PartialSums(limbs)
        else:
            sums = fp.PartialSums(limbs).sums()
            assert hexes([*sums.abs, *sums.square]) == hexes(one.rounded() for one in expected)


def test_limbs_of_numbers_that_are_no_integers() -> None:
    with pytest.raises(TypeError):
        fp._core.sums_of_limbs(np.full((1, 2, 70), 0.5))


def test_limbs_of_another_number_than_names() -> None:
    part = fp.partial_sums({"w": np.ones(3)})
    with pytest.raises(ValueError, match=r"^names: got 1; wanted one for each of 2"):
        part.limbs = np.zeros((2, 2, 70), np.int64)
    part.limbs = part.limbs * 2  # as an all-reduce over two
    assert part.sums().abs.tolist() == [6.0]
