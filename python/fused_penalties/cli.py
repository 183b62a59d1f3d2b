"""The command `fused-penalties`: every tensor's sums and penalties in one read, or in parts."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import compress, groupby
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

import fused_penalties as fp

from . import _core
from ._completion import script
from ._file import opened
from ._options import command_parser, misfit, strength
from ._parts import Entry, Read, Which, largest_of, merged, no_sums, save, share, to_be_saved
from ._picture import check_picture, draw
from ._report import ORDERS, STRENGTH, Report, Row, Totals, as_table, printable, said_of
from ._resolve import resolve
from ._sums import larger
from .files import Batch, FileFault, Tensor, batches, files_in, open_tensors, place_of, portion
from .regularizers import L1L2

# The most that a thread reads before it sums it: small enough to be still in the cache then. Also
# what bounds the memory: a thread has one of them, and as many again are read ahead.
BATCH = 8 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; SystemExit for --help and for bad options."""
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for an encoding without Σ
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's and re's: stderr is for one line of our own
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        parser = command_parser(_report, _merge, _completion)
        options = parser.parse_args(argv)
        if fault := misfit(options):
            parser.error(fault)
        text, status = options.run(options)
        return _write(text) or status  # at the end: no fault comes after half a report
    except SystemExit as end:
        if end.code == 0 and (status := _write("")):  # --help and --version
            return status
        raise
    except KeyboardInterrupt as interrupt:
        _fault(*interrupt.args or ["interrupted"])
        return 130
    except MemoryError:
        return _fault("out of memory")
    except (FileFault, RuntimeError) as error:  # such as a FUSED_PENALTIES_ISA that is not known
        return _fault(error)
    except BrokenPipeError:  # of --help in Python 3.10, if stdout is not buffered
        return 141
    except Exception as error:
        return _fault(f"a fault of the program itself: {error!r}")


def _fault(error: object) -> int:
    # A file's name may hold a line break, and this is to be one line.
    print(f"fused-penalties: {printable(str(error))}", file=sys.stderr)
    return 2


def _write(text: str) -> int:
    if sys.stdout is None:
        return _fault("output: it is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes once more when it ends, and would complain about what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # `| head` has seen enough; the status is the one that a shell gives to SIGPIPE.
        return 141 if isinstance(error, BrokenPipeError) else _fault(f"output: {error.strerror}")
    return 0


Failed = Callable[[str, FileFault], None]  # told of a file that is at fault, and how


def _report(options: argparse.Namespace) -> tuple[str, int]:
    """What is to be printed, and the status."""
    bad = set[str]()

    def failed(file: str, fault: FileFault) -> None:
        if options.part is not None:  # which has to have all files
            raise fault
        if file not in bad:
            _fault(fault)
        bad.add(file)

    check_picture(options.plot)
    entries, notes = _listed(options, failed)
    if not entries and bad:
        return "", 2
    if not entries:
        raise FileFault(", ".join(options.files), "no tensor in it, or none that the filters leave")
    if options.part is not None:
        return _saved(options, entries, notes, failed), 0
    strengths = _strengths(options, entries)  # before the reading, which may take hours
    summed = [entry for entry in entries if entry.summed]
    read = _read(options, entries, notes, summed, failed)
    if bad:
        left = [entry.file not in bad for entry in entries]
        strengths = [*compress(strengths, left)]
        read = read.only(left)
        read.notes.extend(f"{file}: not read, and in no total" for file in sorted(bad))
    if not read.entries:
        return "", 2
    text, status = _printed(options, read, strengths)
    return text, 2 if bad else status


def _saved(
    options: argparse.Namespace, entries: list[Entry], notes: list[str], failed: Failed
) -> str:
    number, parts = options.part
    summed = [entry for entry in entries if entry.summed]
    own = [
        summed[at]._replace(tensor=portion(summed[at].tensor, begin, end))
        for at, begin, end in share([entry.tensor for entry in summed], number, parts)
    ]
    which = Which.of(number, parts, entries)
    with to_be_saved(options.save, which) as file:
        save(file, options.save, which, _read(options, entries, notes, own, failed))
    nbytes, total = (sum(entry.tensor.nbytes for entry in some) for some in (own, summed))
    said = f"part {number} of {parts}, {nbytes:,} of {total:,} bytes, is saved in {options.save}"
    return f"{printable(said)}\n"


def _merge(options: argparse.Namespace) -> tuple[str, int]:
    check_picture(options.plot)
    read = merged([*_given(options.files)])
    return _printed(options, read, _strengths(options, read.entries))


def _completion(options: argparse.Namespace) -> tuple[str, int]:
    return script(options.shell, command_parser(_report, _merge, _completion)), 0


def _given(files: Sequence[str]) -> Iterator[str]:
    """The files that are given, - being those that are listed on standard input."""
    for file in files:
        if file != "-":
            yield file
            continue
        listed = sys.stdin.buffer.read().splitlines() if sys.stdin else []
        if not any(listed):
            raise FileFault("-", "no file is listed on standard input")
        yield from map(os.fsdecode, filter(None, listed))


def _listed(options: argparse.Namespace, failed: Failed) -> tuple[list[Entry], list[str]]:
    def wanted(name: str) -> bool:
        included = not options.include or any(regex.search(name) for regex in options.include)
        return included and not any(regex.search(name) for regex in options.exclude)

    notes: list[str] = []
    entries: list[Entry] = []
    by_place = defaultdict[str, list[str]](list)  # one file may be given under several names
    for given in _given(options.files):
        try:
            files = files_in(given)
        except FileFault as fault:
            failed(given, fault)
            continue
        for file in files:
            said: list[str] = []
            try:
                tensors = open_tensors(file, wanted, said.append)
                for tensor in tensors:
                    _check_expanded(file, tensor, options.max_member)
            except FileFault as fault:
                failed(file, fault)
                continue
            entries += (Entry(file, one, one.stored is not None) for one in tensors)
            notes += (f"{file}: {note}" for note in said)
            by_place[os.path.realpath(file)].append(file)
    for names in by_place.values():
        if len(names) > 1:
            times = "twice" if len(names) == 2 else f"{len(names)} times"
            notes.append(f"{names[0]}: given {times}, counts {times}")
    return entries, notes


def _read(
    options: argparse.Namespace,
    entries: list[Entry],
    notes: list[str],
    read: Sequence[Entry],
    failed: Failed,
) -> Read:
    """The sums of those entries that are to be read, or portions of them."""
    build = fp.build_info()
    threads = options.threads or build["threads"]
    begun = time.perf_counter()
    with _progress(sum(entry.tensor.nbytes for entry in read)) as advance:
        at_once = min(threads, os.cpu_count() or 1)
        sums = _sums(read, at_once, not options.no_mmap, advance, failed)
    seconds = time.perf_counter() - begun
    return Read(entries, notes, sums, seconds, build["active_isa"], threads)


def _strengths(
    options: argparse.Namespace, entries: Sequence[Entry]
) -> Sequence[tuple[float, float]]:
    """The (l1, l2) of each tensor."""
    if options.rules:
        return _by_rules(options.rules, [entry.tensor for entry in entries])
    return [_given_strengths(options)] * len(entries)


def _given_strengths(options: argparse.Namespace) -> tuple[float, float]:
    l1, l2 = (STRENGTH if given is None else given for given in (options.l1, options.l2))
    return l1, l2


def _printed(
    options: argparse.Namespace, read: Read, strengths: Sequence[tuple[float, float]]
) -> tuple[str, int]:
    sums = read.sums.sums()
    # contrib's factor 1/2 goes into the coefficient, where halving is exact.
    half = 0.5 if options.scale == "contrib" else 1.0
    largest = largest_of(read.sums)
    found = zip(sums.abs.tolist(), sums.square.tolist(), largest.tolist(), strict=True)
    rows = []
    l1_terms, l2_terms = [], []
    for (file, tensor, summed), own in zip(read.entries, strengths, strict=True):
        row = Row(file, tensor.name, tensor.shape, tensor.dtype, tensor.size, tensor.nbytes)
        if summed:
            abs_, square, most = next(found)
            l1_term = _core.term(tensor.dtype, abs_, square, l1=own[0], l2=0.0)
            l2_term = _core.term(tensor.dtype, abs_, square, l1=0.0, l2=own[1] * half)
            row = row._replace(
                abs=abs_,
                square=square,
                rms=_rms(square, tensor.size),
                largest=most,
                l1_penalty=float(_core.scalar(l1_term, _core.RESULT_IS_FLOAT64[tensor.dtype])),
                l2_penalty=float(_core.scalar(l2_term, _core.RESULT_IS_FLOAT64[tensor.dtype])),
                l1=own[0],
                l2=own[1],
            )
            l1_terms.append(l1_term)
            l2_terms.append(l2_term)
        rows.append(row)

    tensors = [entry.tensor for entry in read.entries if entry.summed]
    wide = any(_core.RESULT_IS_FLOAT64[tensor.dtype] for tensor in tensors)

    def total_penalty(terms: list[float]) -> float:
        return float(_core.scalar(_core.total(terms), wide))

    l1, l2 = (None, None) if options.rules else _given_strengths(options)
    size, total_square = sum(tensor.size for tensor in tensors), float(sums.total_square)
    report = Report(
        scale=options.scale,
        rules=options.rules,
        l1=l1,
        l2=l2,
        tensors=sorted(rows, key=ORDERS[options.sort]),
        totals=Totals(
            size=size,
            bytes=sum(tensor.nbytes for tensor in tensors),
            abs=float(sums.total_abs),
            square=total_square,
            rms=_rms(total_square, size),
            largest=float(largest.max(initial=0.0)),  # NaN if there is one
            l1_penalty=total_penalty(l1_terms),
            l2_penalty=total_penalty(l2_terms),
        ),
        seconds=read.seconds,
        isa=read.isa,
        threads=read.threads,
        notes=read.notes,
    )
    if options.plot:
        draw(rows, options.plot)
    text = options.form(report) if options.form else as_table(report, options.columns)
    if options.fail_on and report.nonfinite:
        _fault(said_of(report.nonfinite))
        return text, 1
    return text, 0


def _rms(square: float, size: int) -> float:
    return math.sqrt(square / max(size, 1))


def _check_expanded(file: str, tensor: Tensor, most: float) -> None:
    if tensor.stored and tensor.stored.member and tensor.nbytes > most:
        what = f"expands to {tensor.nbytes:,} bytes, past --max-member {most:,}"
        raise FileFault(file, f"member {tensor.name!r}: {what}")


def _by_rules(path: str, tensors: Sequence[Tensor]) -> list[tuple[float, float]]:
    """The (l1, l2) of each tensor. FileFault if the file's rules cannot be read or do not fit."""
    with opened(path) as (file, _):
        encoded = file.read()
    try:
        rules = json.loads(encoded.decode(), object_pairs_hook=_each_once)
        if not isinstance(rules, dict):
            raise ValueError(f"got {type(rules).__name__}; wanted an object of names' patterns")
        found = resolve(
            {pattern: _regularizer(pattern, one) for pattern, one in rules.items()},
            tensors,
            [printable(tensor.name) for tensor in tensors],
        )
    except RecursionError as error:
        raise FileFault(path, "nested too deeply") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFault(path, f"not JSON: {error}") from error
    except (TypeError, ValueError) as error:
        raise FileFault(path, error) from error
    return [(one.l1, one.l2) if isinstance(one, L1L2) else (0.0, 0.0) for one in found]


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    once = dict(pairs)
    if len(once) < len(pairs):
        twice = next(key for key in once if [name for name, _ in pairs].count(key) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return once


def _regularizer(pattern: str, strengths: object) -> L1L2 | None:
    if strengths is None:
        return None
    if not isinstance(strengths, dict) or not strengths or not strengths.keys() <= {"l1", "l2"}:
        raise ValueError(
            f"regularizer[{pattern!r}]: got {json.dumps(strengths)}; wanted null or strengths, "
            '{"l1": 0.01, "l2": 0.01}'
        )
    try:
        return L1L2(**{key: strength(json.dumps(value)) for key, value in strengths.items()})
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"regularizer[{pattern!r}]: {error}") from None


class _Ahead(NamedTuple):
    """A batch that is read, or will be."""

    file: str
    places: list[int]  # of its entries
    batch: Batch
    future: Future[fp.PartialSums] | None


def _sums(
    entries: Sequence[Entry],
    threads: int,
    mapped: bool,
    advance: Callable[[int], None],
    failed: Failed,
) -> fp.PartialSums:
    """Of each entry; those of a file that has failed are not to be used."""
    limbs, largest = no_sums(len(entries))
    waiting: deque[_Ahead] = deque()
    nbytes, last = 0, -1  # what has been read
    bad = set[str]()

    def fail(file: str, fault: FileFault) -> None:
        bad.add(file)
        failed(file, fault)

    def submitted(batch: Batch) -> Future[fp.PartialSums] | None:
        try:
            return pool.submit(_sums_of, batch)
        except RuntimeError:  # the process may start no more threads
            return None

    def take_first() -> None:
        nonlocal nbytes, last
        file, places, batch, future = waiting.popleft()
        try:
            found = future.result() if future else _sums_of(batch)
        except FileFault as fault:
            fail(file, fault)
            return
        limbs[places] += found.limbs
        largest[places] = larger(largest[places], largest_of(found))
        nbytes, last = nbytes + batch.nbytes, places[-1]
        advance(batch.nbytes)

    def file_of(place: int) -> str:
        return entries[place].file

    # As they lie in the files, whatever the order in which they are listed.
    in_order = sorted(
        range(len(entries)), key=lambda place: (file_of(place), place_of(entries[place].tensor))
    )
    # Each thread reads and sums batches of its own. They merge exactly, in any order.
    try:
        with ThreadPoolExecutor(threads) as pool:
            for file, group in groupby(in_order, file_of):
                places = [*group]
                tensors = [entries[place].tensor for place in places]
                try:
                    for batch in batches(tensors, BATCH, mapped=mapped):
                        if len(waiting) == 2 * threads:
                            take_first()
                        if file in bad:
                            break
                        own = places[batch.first : batch.first + batch.tensors]
                        waiting.append(_Ahead(file, own, batch, submitted(batch)))
                except FileFault as fault:
                    fail(file, fault)
            while waiting:
                take_first()
    except KeyboardInterrupt:
        total = sum(entry.tensor.nbytes for entry in entries)
        read = f"{nbytes:,} of {total:,} bytes had been read"
        if last >= 0 and (stored := entries[last].tensor.stored):
            read += f", the last ones of {entries[last].tensor.name!r} in {stored.source.path}"
        raise KeyboardInterrupt(f"interrupted: {read}") from None
    return fp.PartialSums(limbs, largest=largest)


def _sums_of(batch: Batch) -> fp.PartialSums:
    sums = fp.partial_sums(batch.read(), threads=1, largest=True)
    batch.check()
    return sums


@contextmanager
def _progress(nbytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr if that is a terminal, from the second second on."""
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True
    )
    task = bar.add_task("", total=nbytes)
    begun = time.monotonic()

    def advance(more: int) -> None:
        bar.advance(task, more)
        if console.is_interactive and time.monotonic() - begun > 1.0:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
