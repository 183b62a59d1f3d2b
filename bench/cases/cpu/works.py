"""The works of this case that one process measures, with as many threads as it has cores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache, partial
from typing import Any

import numpy as np

import fused_penalties as fp
from bench import exact, limits, machine, peers
from bench.exact import GUARANTEED
from bench.settings import Settings
from bench.timing import Contenders
from bench.weights import DTYPES, OFFSETS, STANDARD_DEVIATION, memory
from bench.work import Row, Work, size
from bench.work import rows as measured_rows

IN_CACHE = 256 << 10
PIECE = 1 << 20  # elements; large buffers repeat one piece, so that the exact sums take no minutes
VALUES = 16  # as many different ones do small buffers have
PEERS_MAY_ERR = 0.9  # some add one by one in float32: how far off stands beside their time
Exact = tuple[Fraction, Fraction]


def rows(settings: Settings, parts: Sequence[str]) -> Iterator[Row]:
    works = Works(settings)
    return measured_rows(
        "cpu", [work for part in parts for work in getattr(works, part)()], settings
    )


class Works:
    """Each part of the case, in the order in which it is measured."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cores = machine.threads()
        self.peers = peers.every(settings.leave_out, settings.quick)
        # Several times what the last cache holds.
        self.large = max((128 if settings.quick else 512) << 20, 4 * machine.last_cache())

    def memory(self) -> list[Work]:
        quick = self.settings.quick
        return [self.sums("float32", self.large, offset) for offset in OFFSETS] + [
            self.sums(dtype, self.large, offset, with_peers=offset == 0 and not quick)
            for dtype in ("float16", "bfloat16", "float64")
            for offset in (OFFSETS[:1] if quick else OFFSETS)
        ]

    def cache(self) -> list[Work]:
        dtypes = ["float32"] if self.settings.quick else list(DTYPES)
        return [
            work
            for dtype in dtypes
            for offset in OFFSETS
            for work in (
                self.sums(dtype, IN_CACHE, offset, with_peers=offset == 0 or dtype == "float32"),
                # The same buffer so many times that the Python call is nothing beside it.
                self.sums(dtype, IN_CACHE, offset, times=100, with_peers=False),
            )
        ]

    def sizes(self) -> list[Work]:
        step = 6 if self.settings.quick else 2
        sizes = [1 << bits for bits in range(12, self.large.bit_length() - 1, step)]
        return [self.sums("float32", size, 0) for size in sizes if size != IN_CACHE]

    def threads(self) -> list[Work]:
        offsets = OFFSETS[:1] if self.settings.quick else OFFSETS
        return [self.sums("float32", self.large, offset) for offset in offsets]

    def small(self) -> list[Work]:
        counts = (1000,) if self.settings.quick else (1, 10, 100, 1000, 10_000)
        return [
            self.work("sums", "float32", [64] * count, offset, with_peers=True)
            for count in counts
            for offset in (OFFSETS if count == 1000 else OFFSETS[:1])
        ]

    def sums(
        self, dtype: str, nbytes: int, offset: int, times: int = 1, with_peers: bool = True
    ) -> Work:
        """Of one buffer, so many times in one call."""
        what = "sums" if times == 1 else "sums, without the call"
        size = nbytes // np.dtype(DTYPES[dtype]).itemsize
        return self.work(what, dtype, [size], offset, with_peers, times)

    def work(
        self,
        what: str,
        dtype: str,
        sizes: list[int],
        offset: int,
        with_peers: bool,
        times: int = 1,
    ) -> Work:
        held = sum(sizes) * np.dtype(DTYPES[dtype]).itemsize
        keys = self.keys(what, dtype, held, offset)
        keys |= {"bytes": times * held, "buffers": times * len(sizes)}

        def prepare(errors: dict[str, float]) -> Contenders:
            made = [numbers(size, dtype, offset, at % VALUES) for at, size in enumerate(sizes)]
            wanted = [exact_sums(size, dtype, at % VALUES) for at, size in enumerate(sizes)]
            sums = fp.sums(made, threads=self.cores)
            check((sums.abs, sums.square), wanted, GUARANTEED[dtype])
            buffers = times * made
            contenders: dict[str, Callable[[], Any]] = {
                "fused_penalties": partial(fp.sums, buffers, threads=self.cores),
                **limits.reads(buffers, self.cores),
            }
            for peer in self.peers if with_peers else ():
                if dtype not in peer.dtypes:
                    continue
                if len(buffers) > peer.most_buffers:
                    why = "to compile that many takes too long"
                    self.settings.leave_out(f"{peer.name}, {len(buffers):,} buffers", why)
                    continue
                try:
                    call = peer.prepare(buffers, self.cores)
                    errors[peer.name] = check(peer.numbers(call()), wanted, PEERS_MAY_ERR)
                    contenders[peer.name] = call
                except Exception as error:  # one that fails here must not keep the others away
                    why = str(error).strip() or type(error).__name__
                    self.settings.leave_out(f"{peer.name}, {dtype}", why.splitlines()[0])
            return contenders

        return Work(keys, prepare)

    def largest(self) -> list[Work]:
        quick = self.settings.quick
        return [
            self.with_largest(dtype, offset)
            for dtype in (["float32"] if quick else DTYPES)
            for offset in (OFFSETS[:1] if quick else OFFSETS)
        ]

    def with_largest(self, dtype: str, offset: int) -> Work:
        def prepare(errors: dict[str, float]) -> Contenders:
            buffer = numbers(self.large // np.dtype(DTYPES[dtype]).itemsize, dtype, offset)
            found = fp.sums([buffer], threads=self.cores, largest=True)
            check((found.abs, found.square), [exact_sums(buffer.size, dtype)], GUARANTEED[dtype])
            most = float(np.abs(buffer[:PIECE]).max())
            if found.total_largest != most:
                raise WrongResult(f"wrong largest magnitude: {found.total_largest!r}, not {most!r}")
            return {
                "fused_penalties": partial(fp.sums, [buffer], threads=self.cores, largest=True),
                **limits.reads([buffer], self.cores),
                "fp.sums without it": partial(fp.sums, [buffer], threads=self.cores),
            }

        return Work(self.keys("sums and largest magnitude", dtype, self.large, offset), prepare)

    def keys(self, what: str, dtype: str, nbytes: int, offset: int) -> dict[str, Any]:
        """What tells the row of one buffer from others."""
        return {
            "what": what,
            "dtype": dtype,
            "bytes": nbytes,
            "buffers": 1,
            "threads": self.cores,
            "offset": offset,
            "where": machine.where(nbytes),
        }

    def streaming(self) -> list[Work]:
        return [self.chunks(kilobytes << 10) for kilobytes in (4, 64, 1024)]

    def chunks(self, chunk: int) -> Work:
        nbytes = 64 << 20

        def prepare(errors: dict[str, float]) -> Contenders:
            buffer = numbers(nbytes // 4, "float32", 0)
            chunks = np.split(buffer, nbytes // chunk)

            def streamed() -> fp.Sums:
                stream = fp.StreamingSums()
                for one in chunks:
                    stream.update(one, threads=self.cores)
                return stream.sums()

            def in_calls() -> None:
                for one in chunks:
                    fp.sums(one, threads=self.cores)

            found = streamed()
            wanted = [exact_sums(buffer.size, "float32")]
            check((np.ravel(found.abs), np.ravel(found.square)), wanted, GUARANTEED["float32"])
            return {
                "fused_penalties": streamed,
                "fp.sums of the whole": partial(fp.sums, buffer, threads=self.cores),
                "fp.sums of each chunk": in_calls,
            }

        what = f"StreamingSums, chunks of {size(chunk)}"
        return Work(self.keys(what, "float32", nbytes, 0), prepare)


def numbers(size: int, dtype: str, offset: int, seed: int = 0) -> np.ndarray:
    """The same piece over and over, at so many bytes past a cache line."""
    out = memory(size, DTYPES[dtype], offset)
    values = piece(min(size, PIECE), dtype, seed)
    for start in range(0, size, PIECE):
        out[start : start + PIECE] = values[: size - start]
    return out


@cache
def piece(size: int, dtype: str, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(size) * STANDARD_DEVIATION
    return drawn.astype(DTYPES[dtype])


@cache
def exact_sums(size: int, dtype: str, seed: int = 0) -> Exact:
    """Those of `numbers`."""
    values = piece(min(size, PIECE), dtype, seed)
    whole = exact.sums(values)
    rest = exact.sums(values[: size % len(values)])
    return tuple(size // len(values) * w + r for w, r in zip(whole, rest, strict=True))


def check(found: tuple[Any, Any], wanted: Sequence[Exact], bound: float) -> float:
    """The largest relative error of sums, which is at most the bound: wrong ones are not timed."""
    most = 0.0
    for what, sums, exact_ones in zip(
        ("abs", "square"), found, zip(*wanted, strict=True), strict=True
    ):
        if sums is None:  # which the peer does not have
            continue
        for got, exactly in zip(map(float, sums), exact_ones, strict=True):
            error = float(abs(Fraction(got) / exactly - 1)) if math.isfinite(got) else math.inf
            most = max(most, error)
            if error > bound:
                raise WrongResult(f"wrong sum of {what}: {got!r}, exactly {float(exactly)!r}")
    return most


class WrongResult(Exception):
    pass
