"""A buffer that comes in chunks, or of whose parts each has a stream, has the sums of the whole."""

from __future__ import annotations

import array
import copy
import io
import json
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fresh
import fused_penalties as fp
import oracle
import values
from layouts import LAYOUTS, cube
from oracle import hexes

dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)


def strided(x: np.ndarray) -> np.ndarray:
    apart = np.zeros((x.size, 3), x.dtype)
    apart[:, 1] = x
    return apart[:, 1]


# The same elements in the same order, differently laid out.
CHUNKS: dict[str, Callable[[np.ndarray], Any]] = {
    "as it is": lambda x: x,
    "unaligned": lambda x: values.at_offset(x, 1),
    "strided": strided,
    "big-endian": lambda x: x if x.dtype == oracle.BFLOAT16 else x.astype(x.dtype.newbyteorder()),
    "of rank 3": lambda x: x.reshape(1, -1, 1),
}


@st.composite
def buffers(draw: st.DrawFn, dtype: str) -> np.ndarray:
    """Of one kind, or several after each other, so that of bfloat16's blocks only some are wide."""
    kinds = draw(st.lists(st.sampled_from(values.KINDS), min_size=1, max_size=3))
    counts = st.integers(0, 5 * 4096) | st.integers(0, 300)
    seed = draw(st.integers(0, 99))
    return np.concatenate([values.make(kind, dtype, draw(counts), seed) for kind in kinds])


@st.composite
def pieces(draw: st.DrawFn, x: np.ndarray, most: int = 12) -> list[np.ndarray]:
    """The buffer, cut anywhere, often at a block's edge or one beside it."""
    block = oracle.block_elements(x.dtype)
    edges = st.builds(
        lambda k, step: k * block + step, st.integers(0, x.size // block), st.integers(-1, 1)
    )
    cuts = draw(st.lists(st.integers(0, x.size) | edges, max_size=most))
    return np.split(x, sorted(min(max(cut, 0), x.size) for cut in cuts))


def of(chunks: Iterable[Any], **arguments: Any) -> fp.StreamingSums:
    stream = fp.StreamingSums(**arguments)
    for chunk in chunks:
        stream.update(chunk)
    return stream


def assert_sums(stream: fp.StreamingSums, x: np.ndarray) -> None:
    sums = stream.sums()
    assert hexes([*sums.abs, *sums.square]) == hexes(oracle.sums(x))
    assert hexes([sums.total_abs, sums.total_square]) == hexes(oracle.sums(x))
    assert sums.sizes is not None
    assert sums.sizes.tolist() == [x.size] == [stream.size]
    np.testing.assert_array_equal(stream.partial_sums().limbs, [oracle.limbs(x)])


@dtypes
@given(data=st.data())
@pytest.mark.usefixtures("isa")
def test_any_chunks(dtype: str, data: st.DataObject) -> None:
    x = data.draw(buffers(dtype))
    stream, taken = fp.StreamingSums(), 0
    for piece in data.draw(pieces(x)):
        stream.update(CHUNKS[data.draw(st.sampled_from(list(CHUNKS)))](piece))
        taken += piece.size
        if data.draw(st.integers(0, 3)) == 0:
            assert_sums(stream, x[:taken])
    assert_sums(stream, x)


@dtypes
@pytest.mark.usefixtures("isa")
def test_every_size_of_chunks(dtype: str) -> None:
    """All chunks of one size, from single elements to more than blocks."""
    block = oracle.block_elements(oracle.DTYPES[dtype])
    x = values.assorted(dtype, 4 * block + 7)
    for size in (1, 3, 64, block // 2, block - 1, block, block + 1, 2 * block, 3 * block + 5):
        chunks = [x[at : at + size] for at in range(0, x.size, size)]
        assert_sums(of(chunks), x)


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
@pytest.mark.parametrize("layout", ["as it is", "strided"])
def test_chunks_that_several_threads_read(threads: int | None, layout: str) -> None:
    x = values.make("lognormal", "float32", 5 << 20)
    stream = of([x[:1001]])
    stream.update(CHUNKS[layout](x[1001:-5000]), threads=threads)
    stream.update(x[-5000:], threads=threads)
    assert_sums(stream, x)


@dtypes
def test_a_chunk_is_taken_in_the_order_of_addresses(dtype: str) -> None:
    chunks = [np.asarray(layout(cube(dtype))) for layout in LAYOUTS.values()]
    assert_sums(of(chunks), np.concatenate([oracle.reading_order(chunk) for chunk in chunks]))


def test_what_a_chunk_may_be() -> None:
    torch = pytest.importorskip("torch", reason="not installed: torch")
    x = np.arange(-4, 8, dtype=np.float32)
    chunks = [
        memoryview(x[:2]),
        torch.from_numpy(x[2:4]).requires_grad_(),
        array.array("f", x[4:6].tolist()),
        [float(x[6]), 3],
        x[8],
        x[9:],
    ]
    assert_sums(of(chunks), x)
    sizes = [1000, 5000, 1, 4096]
    numbers = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0)).bfloat16()
    x = numbers.view(torch.uint16).numpy().view(oracle.BFLOAT16)
    assert_sums(of(list(numbers.split(sizes))), x)


def test_updates_may_go_on_after_the_sums() -> None:
    stream = fp.StreamingSums()
    assert stream.dtype is None
    assert stream.sums().abs.tolist() == [0.0]
    stream.update(np.full(3, -2.0))
    first = stream.sums()
    stream.update(np.ones(5))
    assert first.abs.tolist() == [6.0]
    assert stream.sums().square.tolist() == [17.0]
    assert stream.sums().total_rms == np.sqrt(17.0 / 8)
    assert repr(stream) == "<StreamingSums of 8 elements, float64>"


# Parts of one buffer.


@dtypes
@given(data=st.data())
@pytest.mark.usefixtures("isa")
def test_neighbours_merge_in_any_grouping(dtype: str, data: st.DataObject) -> None:
    draw = data.draw
    x = draw(buffers(dtype))
    parts, at = [], 0
    for piece in draw(pieces(x, most=6)):
        parts.append(of(draw(pieces(piece, most=3)), start=at))
        at += piece.size
    while len(parts) > 1:
        k = draw(st.integers(0, len(parts) - 2))
        other = parts.pop(k + 1)
        before = other.state()
        parts[k].merge(other)
        assert other.state() == before
    assert_sums(parts[0], x)
    assert parts[0].state() == of([x]).state() or x.size == 0


@dtypes
@given(data=st.data())
def test_a_part_from_the_middle_of_a_block(dtype: str, data: st.DataObject) -> None:
    """However it came together, its state is that of one stream of it; with the rest, the whole."""
    x = data.draw(buffers(dtype))
    begin = data.draw(st.integers(0, x.size))
    middle = data.draw(st.integers(begin, x.size))
    whole = of([x[begin:]], start=begin)
    merged = of([x[begin:middle]], start=begin)
    merged.merge(of([x[middle:]], start=middle))
    assert merged.state() == whole.state()
    assert (merged.start, merged.size) == (begin, x.size - begin)
    block = oracle.block_elements(x.dtype)
    if begin % block and begin < x.size:
        for call in (whole.sums, whole.partial_sums):
            with pytest.raises(ValueError, match=rf"^the stream starts at element {begin}, in the"):
                call()
    first = of([x[:begin]])
    first.merge(whole)
    assert_sums(first, x)


@dtypes
def test_parts_that_start_at_blocks_have_sums_of_their_own(dtype: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    x = values.make("cauchy", dtype, 5 * block + 3)
    parts = [of([x[: 2 * block]]), of([x[2 * block :]], start=2 * block)]
    assert_sums(parts[1], x[2 * block :])
    limbs = sum(part.partial_sums() for part in reversed(parts)).limbs
    np.testing.assert_array_equal(limbs, [oracle.limbs(x)])


def test_only_neighbours_merge() -> None:
    first = of([np.ones(10)])
    for start in (0, 9, 11):
        with pytest.raises(
            ValueError, match=rf"^other: starts at element {start}; wanted 10, where"
        ):
            first.merge(of([np.ones(5)], start=start))
    with pytest.raises(TypeError, match=r"^other: dtype float32; wanted float64, the stream's"):
        first.merge(of([np.ones(5, np.float32)], start=10))
    with pytest.raises(TypeError, match=r"^other: got PartialSums; wanted StreamingSums"):
        first.merge(fp.partial_sums(np.ones(5)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted 10"):
        first.merge(first)
    first.merge(fp.StreamingSums(start=10))
    assert first.sums().abs.tolist() == [10.0]
    empty = fp.StreamingSums()
    empty.merge(empty)
    empty.merge(first)
    assert (empty.dtype, empty.sums().abs.tolist()) == ("float64", [10.0])


# What is refused leaves the stream as it was.


def test_a_stream_has_one_dtype() -> None:
    stream = of([np.ones(3, np.float32)])
    before = stream.state()
    for wrong in (np.ones(3), np.ones(3, np.float16), np.empty(0)):
        with pytest.raises(TypeError, match=r"^chunk: dtype float(16|64); wanted float32, the str"):
            stream.update(wrong)
    with pytest.raises(TypeError, match=r"^chunk: dtype int64 is not supported; wanted float16,"):
        stream.update(np.ones(3, np.int64))
    for nothing in (None, "weights", b"1234", [np.ones(3, np.float32)], {"w": np.ones(3)}):
        with pytest.raises(TypeError, match=r"^chunk: got .*; wanted an array"):
            stream.update(nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^threads: got 0; wanted a positive integer or None"):
        stream.update(np.ones(3, np.float32), threads=0)
    assert stream.state() == before


def test_a_chunk_without_elements_changes_nothing() -> None:
    stream = of([np.empty(0, np.float16), np.empty((3, 0), np.float32)])
    assert stream.dtype is None
    stream.update(np.ones(1))
    before = stream.state()
    stream.update(np.empty(0))
    assert stream.state() == before


def test_the_dtype_may_be_given() -> None:
    import ml_dtypes

    for dtype in ("bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
        stream = fp.StreamingSums(dtype)
        assert stream.dtype == "bfloat16"
        with pytest.raises(TypeError, match="wanted bfloat16, the stream's"):
            stream.update(np.ones(3))
    assert fp.StreamingSums(np.float64).dtype == "float64"
    for wrong in ("f4", np.int32, 3):
        with pytest.raises(TypeError, match=r"is not supported; wanted float16, bfloat16,"):
            fp.StreamingSums(wrong)
    with pytest.raises(TypeError, match=r"^dtype: got ndarray; wanted a dtype, or None"):
        fp.StreamingSums(np.ones(3, np.float32))


@pytest.mark.parametrize("start", [-1, 1 << 63, 1.0, "0", None, True])
def test_starts_that_are_none(start: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^start: got .*; wanted"):
        fp.StreamingSums(start=start)


def test_more_elements_than_can_be_counted() -> None:
    last = fp.StreamingSums(start=(1 << 63) - 4)
    last.update(np.ones(3))
    with pytest.raises(ValueError, match=r"^size: got more than 2\^63 - 1 elements"):
        last.update(np.ones(1))
    assert last.size == 3


# States.


def by_npz(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return np.load(file)  # allows no pickles


WAYS: dict[str, Callable[[fp.StreamingSums], fp.StreamingSums]] = {
    "state": lambda s: fp.StreamingSums.from_state(s.state()),
    "json": lambda s: fp.StreamingSums.from_state(json.loads(json.dumps(s.state()))),
    "npz": lambda s: fp.StreamingSums.from_state(by_npz(s.state())),
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@dtypes
@given(data=st.data())
def test_states(dtype: str, way: str, data: st.DataObject) -> None:
    x = data.draw(buffers(dtype))
    start = data.draw(st.integers(0, x.size))
    now = data.draw(st.integers(start, x.size))
    stream = of([x[start:now]], start=start)
    other = WAYS[way](stream)
    assert type(other) is fp.StreamingSums
    assert other.state() == stream.state()
    other.update(x[now:])
    assert (stream.start, stream.size) == (start, now - start), "it has a life of its own"
    whole = of([x[:start]])
    whole.merge(other)
    assert_sums(whole, x)


def test_state_of_a_stream_that_knows_nothing() -> None:
    stream = fp.StreamingSums(start=7)
    for way in WAYS.values():
        other = way(stream)
        assert (other.dtype, other.start, other.size) == (None, 7, 0)
        assert other.sums().total_abs == 0.0  # nothing is that anywhere


BLOCK = 1024  # elements of float64
GOOD = of([np.ones(3 * BLOCK)], start=BLOCK - 1).state()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another dtype": ({"dtype": "int64"}, "dtype int64 is not supported"),
    "no dtype": ({"dtype": ""}, "size: got 3072 elements of no dtype"),
    "a narrower dtype": ({"dtype": "float32"}, "head: got 8 bytes; wanted 4100"),
    "a dtype that is no string": ({"dtype": None}, "dtype: got NoneType; wanted a string"),
    "many dtypes": ({"dtype": ["float64"]}, "dtype: got list; wanted a string"),
    "a negative start": ({"start": -1}, "start: got -1; wanted"),
    "a negative size": ({"size": -1}, "size: got -1; wanted"),
    "a fraction": ({"size": 3072.0}, r"size: got 3072\.0; wanted an integer"),
    "true": ({"size": True}, "size: got True; wanted an integer"),
    "a big size": ({"size": 1 << 64}, "size: got 18446744073709551616; wanted"),
    "a size beyond all": ({"size": (1 << 63) - 1}, r"size: got more than 2\^63 - 1 elements"),
    "another start": ({"start": 0}, "head: got 8 bytes; wanted 0"),
    "another size": ({"size": 3070}, "tail: got 8184 bytes; wanted 8168"),
    "only edges": (
        {"size": 1 + 1023, "limbs": GOOD["limbs"]},
        "limbs: got the sums of more than 0 blocks",
    ),
    "no head": ({"head": ""}, "head: got 0 bytes; wanted 8"),
    "a long tail": ({"tail": GOOD["tail"] + "00"}, "tail: got 8185 bytes; wanted 8184"),
    "no hexadecimal": ({"head": "xy" * 8}, "head: .*wanted bytes in hexadecimal"),
    "bytes": ({"head": bytes(8)}, "head: got bytes; wanted a string"),
    "limbs of one sum": ({"limbs": GOOD["limbs"][:1]}, "limbs: got int64 of shape"),
    "few limbs": ({"limbs": np.zeros((2, 69), np.int64)}, r"limbs: .*\(1, 2, 69\); wanted"),
    "ragged limbs": ({"limbs": [[1], [1, 2]]}, "limbs: "),
    "floats": ({"limbs": np.zeros((2, 70))}, "limbs: got float64"),
    "no limbs": ({"limbs": None}, "limbs: got object"),
    "negative limbs": ({"limbs": -np.array(GOOD["limbs"])}, "limbs: got a negative sum"),
    "more NaN than blocks": (
        {"limbs": np.pad(np.full((2, 1), 3), ((0, 0), (68, 1)))},
        "limbs: got the sums of more than 2 blocks",
    ),
    "more infinities than blocks": (
        {"limbs": np.pad(np.full((2, 1), 3), ((0, 0), (69, 0)))},
        "limbs: got the sums of more than 2 blocks",
    ),
    "a largest that is no string": ({"largest": 1.0}, "largest: got float; wanted a string"),
    "a largest that is no number": ({"largest": "big"}, "largest: got 'big'; wanted what float"),
    "too large a largest": ({"largest": "0x1p2000"}, "largest: got '0x1p2000'; wanted what float"),
    "a negative largest": ({"largest": "-0x1p0"}, "largest: got a negative number"),
    "a largest of no whole block": (
        {"size": 1023, "largest": "0x1p0", "limbs": np.zeros((2, 70), np.int64), "start": 0}
        | {"head": ""},
        "largest: got 1.0+; wanted 0 where no block is whole",
    ),
    "one more": ({"version": 2}, r"state: got \['dtype', .*'version'\]; wanted"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_states_that_are_none(kind: str) -> None:
    changes, message = WRONG[kind]
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        fp.StreamingSums.from_state(GOOD | changes)


def test_states_that_are_no_mapping() -> None:
    with pytest.raises(TypeError, match=r"^state: got list; wanted a mapping"):
        fp.StreamingSums.from_state(list(GOOD.items()))  # type: ignore[arg-type]
    for key in GOOD:
        less = {other: value for other, value in GOOD.items() if other != key}
        with pytest.raises(ValueError, match=r"^state: got \["):
            fp.StreamingSums.from_state(less)


@given(data=st.data())
def test_any_state_is_refused_or_works(data: st.DataObject) -> None:
    draw = data.draw
    counts = st.integers(-2, 1 << 65) | st.integers(0, 5000)
    digits = st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from([0, 1, 2])
    anything: dict[str, st.SearchStrategy[Any]] = {
        "dtype": st.sampled_from(["", *oracle.DTYPES]),
        "start": counts,
        "size": counts,
        "limbs": st.lists(st.tuples(*[digits] * 70), min_size=2, max_size=2),
        "largest": st.just("") | st.floats().map(float.hex),
        "head": st.binary(max_size=64).map(bytes.hex),
        "tail": st.binary(max_size=64).map(bytes.hex),
    }
    state = GOOD | {key: draw(anything[key]) for key in draw(st.sets(st.sampled_from([*GOOD])))}
    try:
        stream = fp.StreamingSums.from_state(state)
    except (TypeError, ValueError):
        return
    assert fp.StreamingSums.from_state(stream.state()).state() == stream.state()
    assert stream.size == state["size"]
    stream.update(np.ones(3000, stream.dtype) if stream.dtype != "bfloat16" else [])
    after = stream.start + stream.size
    with_largest = stream.state()["largest"] != ""
    stream.merge(fp.StreamingSums(stream.dtype, start=after, largest=with_largest))


# Calls at the same time.


def test_one_call_at_a_time_may_change_a_stream() -> None:
    """And all others go by what was there before it. The long call ends with the process."""
    code = """
    import os, threading, time
    import numpy as np
    import fused_penalties as fp
    endless = np.broadcast_to(np.float32(1), (1 << 43,))
    stream = fp.StreamingSums()
    stream.update(np.ones(5000, np.float32))
    before = stream.state()
    threading.Thread(target=stream.update, args=[endless], daemon=True).start()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            stream.update(np.ones(0, np.float32))
        except RuntimeError as error:
            assert "being updated by another call" in str(error)
            break
    else:
        raise AssertionError("never refused")
    try:
        stream.merge(fp.StreamingSums(start=5000))
    except RuntimeError:
        pass
    else:
        raise AssertionError("merged")
    assert stream.state() == before
    assert stream.sums().abs.tolist() == [5000.0]
    other = fp.StreamingSums.from_state(before)
    other.update(np.ones(1, np.float32))
    assert other.size == 5001 and stream.size == 5000
    os._exit(0)
    """
    fresh.output(code)


# The first takes most of an hour, the second, with the scalar kernels, half a second at least.
LONG_CHUNKS = {
    "strided": "np.broadcast_to(np.float16(1), (1 << 43,))",
    "contiguous": "np.zeros(1 << 30, np.float16)",
}


@pytest.mark.parametrize("layout", LONG_CHUNKS)
def test_ctrl_c_leaves_the_stream_as_it_was(layout: str) -> None:
    code = """
    import os, signal, threading, time
    import numpy as np
    import fused_penalties as fp
    fp._core.use_isa("scalar")
    chunk = CHUNK
    stream = fp.StreamingSums()
    stream.update(np.ones(5000, np.float16))
    before = stream.state()
    def send():
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
    def handler(number, frame):
        assert stream.state() == before
        assert stream.sums().abs.tolist() == [5000.0]
        try:
            stream.update(np.ones(1, np.float16))
        except RuntimeError as error:
            raise KeyboardInterrupt from error
    signal.signal(signal.SIGINT, handler)
    threading.Thread(target=send, daemon=True).start()
    try:
        stream.update(chunk, threads=2)
    except KeyboardInterrupt as error:
        assert "below a signal's handler" in str(error.__cause__)
    else:
        raise AssertionError("the call came to its end")
    assert stream.state() == before
    stream.update(np.ones(1, np.float16))
    assert stream.size == 5001
    """
    fresh.output(code.replace("CHUNK", LONG_CHUNKS[layout]))


def test_many_threads_at_once() -> None:
    """Each update is refused or counts; with a lock of the callers none is refused."""
    chunk = np.ones(30_001, np.float32)
    stream, lock = fp.StreamingSums(), threading.Lock()

    def work(turn: int) -> int:
        done = 0
        for _ in range(50):
            if turn % 2:
                stream.sums(), stream.state(), stream.size
            try:
                stream.update(chunk, threads=1 + turn % 2)
            except RuntimeError:
                continue
            done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        done = sum(pool.map(work, range(16)))
    assert done > 0
    assert stream.size == done * chunk.size
    assert stream.sums().abs.tolist() == [float(stream.size)]

    def in_turn(_: int) -> None:
        with lock:
            stream.update(chunk)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(in_turn, range(200)))
    assert stream.size == (done + 200) * chunk.size


def test_a_chunk_whose_reading_updates_the_stream() -> None:
    stream = fp.StreamingSums()

    class Nested:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            stream.update(np.full(2, 10.0))
            return np.ones(3)

    stream.update(Nested())  # type: ignore[arg-type]
    assert stream.sums().abs.tolist() == [23.0]


def chunks_of_a_file(x: np.ndarray, nbytes: int) -> Iterator[np.ndarray]:
    file = io.BytesIO(x.tobytes())
    room = np.empty(nbytes // x.itemsize, x.dtype)
    while count := file.readinto(room.view(np.uint8)):
        yield room[: count // x.itemsize]


def test_chunks_in_the_same_memory() -> None:
    """Nothing of a chunk is needed any more when the call returns."""
    x = values.make("normal", "float64", 9999)
    assert_sums(of(chunks_of_a_file(x, 4096)), x)
