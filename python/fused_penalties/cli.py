"""The command `fused-penalties`: every tensor's sums and penalties in one read, or in parts."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

import fused_penalties as fp

from . import _core
from ._file import opened
from ._parts import MOST_PARTS, Entry, Read, Which, merged, save, share, to_be_saved
from ._report import FORMULAS, Report, Row, Totals, as_csv, as_json, as_table, printable
from ._resolve import resolve
from .files import Batch, FileFault, Tensor, batches, open_tensors, portion
from .regularizers import L1L2

# The most that a thread reads before it sums it: small enough to be still in the cache then. Also
# what bounds the memory: a thread has one of them, and as many again are read ahead.
BATCH = 8 << 20

DESCRIPTION = """\
Print each tensor's sum of absolute values, sum of squares, and the L1 and L2
penalties that a regularizer makes of them. FILE is a .npy, .npz, .safetensors
or .gguf, a sharded model's .safetensors.index.json or .bin.index.json, what
torch.save wrote (.pt, .pth, .bin, .ckpt), or a folder of .safetensors, in which
parts that torch.distributed.checkpoint's HuggingFaceStorageWriter saved of one
tensor are one. Pickles are loaded by nothing but torch.load(weights_only=True).
"""

NOTES = """\
scales:
  keras    L1 = l1·Σ|w|, L2 = l2·Σw²     as keras.regularizers
  contrib  L1 = l1·Σ|w|, L2 = l2·Σw²/2   as tf.contrib.layers and tf.nn.l2_loss
  A strength is rounded to the weights' dtype before it multiplies (float32 for
  16-bit weights), and the penalty is rounded to that dtype.

rules:
  {"bias|norm": null, ".*": {"l1": 1e-6, "l2": 1e-4}}
  The first regular expression with a match anywhere in a tensor's name decides;
  null, and no match at all, mean no penalty; a strength left out is 0. Each has
  to decide for some tensor. The report shows what each tensor got.

totals:
  Totals add the exact sums, and the penalties before their rounding, and are
  rounded once. Tensors that are not float16, bfloat16, float32 or float64 are
  listed, but are in no total. They are of what is in FILE: that the last file
  of a folder, or other parts of a split .gguf, are missing cannot be seen.

machine-readable output:
  Numbers are complete: read back, they have the same bits. JSON: NaN and
  infinity are the strings "NaN" and "Infinity"; what is not summed is null.
  CSV: one line per tensor, no totals and no notes; NaN and infinity are nan and
  inf; what is not summed is empty. Control characters in names are escaped in
  CSV and in the table; JSON has the names as they are.

parts:
  --part K/N --save FILE reads the K-th of N shares of the bytes, nearly equal
  ones, and saves its sums. N such runs, in any order and on any machines, and
      fused-penalties merge FILE…
  print what one run would have printed, to the last bit; files are then named
  as in the first part. --include and --exclude have to be the same in all of
  them; how to print, and the strengths, are for merge. Parts of other files are
  refused by names, shapes, sizes and samples of the contents: files must not be
  written to between the runs. A run may be repeated: it replaces the same part
  of the same checkpoint, and no other file.

memory:
  It does not grow with the files: some 8 MB of them for each thread, used where
  the system keeps them (a map). --no-mmap copies instead, as is done by itself
  for what cannot be mapped. A file that is written to meanwhile is a fault.
  Of what torch.save wrote before PyTorch 1.6, all is held in memory.

exit status:
  0, or 2 with one line on stderr for a file or an option that is at fault, or
  130 after Ctrl-C, with a line that says what had been read.
"""

MERGE = """\
Print the report whose parts were saved by `fused-penalties report --part K/N
--save PART`. All N have to be given, in any order. Options as in `report`,
whose --help explains them.
"""


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
        parser = _parser()
        options = parser.parse_args(argv)
        if fault := _misfit(options):
            parser.error(fault)
        text = options.run(options)
        return _write(text)  # at the end: no fault comes after half a report
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


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="fused-penalties")
    parser.add_argument("--version", action="version", version=f"%(prog)s {fp.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="the sums and penalties of the tensors in weight files",
        description=DESCRIPTION,
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.set_defaults(run=_report, part=None, save=None)
    report.add_argument("files", nargs="+", metavar="FILE")
    _add_printing(report)
    _add_reading(report.add_argument)
    merge = commands.add_parser(
        "merge",
        help="the report whose parts `report --part` has saved",
        description=MERGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    merge.set_defaults(run=_merge, part=None, save=None)
    merge.add_argument("files", nargs="+", metavar="PART")
    _add_printing(merge)
    return parser


def _add_reading(add: Callable[..., Any]) -> None:
    for option, which in ("--include", "only"), ("--exclude", "leave out"):
        add(
            option,
            type=_regex,
            action="append",
            default=[],
            metavar="REGEX",
            help=f"{which} tensors with a match anywhere in their name; may be repeated",
        )
    add(
        "--threads",
        type=_count,
        metavar="N",
        help="at most so many (default: OMP_NUM_THREADS, or all cores)",
    )
    add(
        "--max-member",
        type=_count,
        default=math.inf,
        metavar="BYTES",
        help="refuse a .npz with an array that expands to more (default: no limit)",
    )
    add("--no-mmap", action="store_true", help="read the files, do not map them: see below")
    add("--part", type=_part, metavar="K/N", help="only the K-th of N parts: see below")
    add("--save", metavar="PART", help="the file to save it in, a .npz")


def _add_printing(report: argparse.ArgumentParser) -> None:
    add = report.add_argument
    add("--l1", type=_strength, metavar="X", help="L1 strength (default: 0.01)")
    add("--l2", type=_strength, metavar="X", help="L2 strength (default: 0.01)")
    add("--rules", metavar="FILE", help="strengths by tensor names, from a JSON file: see below")
    add("--scale", choices=FORMULAS, default="keras", help="L2 without or with ½ (default: keras)")
    add(
        "--sort",
        choices=_SORT_KEYS,
        default="file",
        help="names rising, numbers falling (default: as in the file)",
    )
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const=as_json, help="print JSON")
    form.add_argument("--csv", dest="form", action="store_const", const=as_csv, help="print CSV")
    report.set_defaults(form=as_table)


def _misfit(options: argparse.Namespace) -> str | None:
    """What is wrong with options that are each right."""
    if options.rules is not None and (options.l1, options.l2) != (None, None):
        return "argument --rules: not allowed with argument --l1 or --l2"
    if (options.part is None) != (options.save is None):
        return "arguments --part and --save: wanted both or none of them"
    printing = {
        "--l1": options.l1 is not None,
        "--l2": options.l2 is not None,
        "--rules": options.rules is not None,
        "--scale": options.scale != "keras",
        "--sort": options.sort != "file",
        "--json": options.form is as_json,
        "--csv": options.form is as_csv,
    }
    if options.save is not None and any(printing.values()):
        given = next(option for option, is_given in printing.items() if is_given)
        return f"argument --save: not allowed with argument {given}, which is for merge"
    return None


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n")


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {text!r}")
    return value


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return value


def _part(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"(\d{1,10})/(\d{1,10})", text, re.ASCII)
    number, parts = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= number <= parts <= MOST_PARTS:
        raise argparse.ArgumentTypeError(f"expected K/N with 1 <= K <= N, got {text!r}")
    return number, parts


def _falling(value: float | None) -> tuple[bool, bool, float]:
    # NaN first, since it is what one looks for; what is not summed last.
    return value is None, value == value, -(value or 0.0)


_SORT_KEYS: dict[str, Callable[[Row], Any]] = {
    "file": lambda row: 0,
    "name": lambda row: row.name,
    "size": lambda row: -row.size,
    "abs": lambda row: _falling(row.abs),
    "square": lambda row: _falling(row.square),
}


def _report(options: argparse.Namespace) -> str:
    entries, notes = _listed(options)
    tensors = [entry.tensor for entry in entries if entry.summed]
    if options.part is None:
        strengths = _strengths(options, entries)  # before the reading, which may take hours
        return _printed(options, _read(options, entries, notes, tensors), strengths)
    number, parts = options.part
    which = Which.of(number, parts, entries)
    with to_be_saved(options.save, which) as file:
        portions = [portion(tensors[at], *cut) for at, *cut in share(tensors, number, parts)]
        read = _read(options, entries, notes, portions)
        save(file, options.save, which, read)
    nbytes, total = (sum(tensor.nbytes for tensor in some) for some in (portions, tensors))
    return (
        printable(
            f"part {number} of {parts}, {nbytes:,} of {total:,} bytes, is saved in {options.save}"
        )
        + "\n"
    )


def _merge(options: argparse.Namespace) -> str:
    read = merged(options.files)
    return _printed(options, read, _strengths(options, read.entries))


def _listed(options: argparse.Namespace) -> tuple[list[Entry], list[str]]:
    def wanted(name: str) -> bool:
        included = not options.include or any(regex.search(name) for regex in options.include)
        return included and not any(regex.search(name) for regex in options.exclude)

    notes: list[str] = []
    entries: list[Entry] = []
    for file in options.files:
        said: list[str] = []
        for tensor in open_tensors(file, wanted, said.append):
            _check_expanded(file, tensor, options.max_member)
            entries.append(Entry(file, tensor, tensor.stored is not None))
        notes += [f"{file}: {note}" for note in said]
    if not entries:
        raise FileFault(", ".join(options.files), "no tensor in it, or none that the filters leave")
    return entries, notes


def _read(
    options: argparse.Namespace, entries: list[Entry], notes: list[str], tensors: Sequence[Tensor]
) -> Read:
    build = fp.build_info()
    threads = options.threads or build["threads"]
    begun = time.perf_counter()
    with _progress(sum(tensor.nbytes for tensor in tensors)) as advance:
        limbs = _limbs(tensors, min(threads, os.cpu_count() or 1), not options.no_mmap, advance)
    seconds = time.perf_counter() - begun
    return Read(entries, notes, limbs, seconds, build["active_isa"], threads)


def _strengths(
    options: argparse.Namespace, entries: Sequence[Entry]
) -> Sequence[tuple[float, float]]:
    """The (l1, l2) of each tensor."""
    if options.rules:
        return _by_rules(options.rules, [entry.tensor for entry in entries])
    return [_given(options)] * len(entries)


def _given(options: argparse.Namespace) -> tuple[float, float]:
    l1, l2 = (0.01 if strength is None else strength for strength in (options.l1, options.l2))
    return l1, l2


def _printed(
    options: argparse.Namespace, read: Read, strengths: Sequence[tuple[float, float]]
) -> str:
    sums = fp.PartialSums(read.limbs).sums()
    # contrib's factor 1/2 goes into the coefficient, where halving is exact.
    half = 0.5 if options.scale == "contrib" else 1.0
    pairs = zip(sums.abs.tolist(), sums.square.tolist(), strict=True)
    rows = []
    l1_terms, l2_terms = [], []
    for (file, tensor, summed), own in zip(read.entries, strengths, strict=True):
        row = Row(file, tensor.name, tensor.shape, tensor.dtype, tensor.size, tensor.nbytes)
        if summed:
            pair = next(pairs)
            l1_term = _core.term(tensor.dtype, *pair, l1=own[0], l2=0.0)
            l2_term = _core.term(tensor.dtype, *pair, l1=0.0, l2=own[1] * half)
            row = row._replace(
                abs=pair[0],
                square=pair[1],
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

    l1, l2 = (None, None) if options.rules else _given(options)
    report = Report(
        scale=options.scale,
        rules=options.rules,
        l1=l1,
        l2=l2,
        tensors=sorted(rows, key=_SORT_KEYS[options.sort]),
        totals=Totals(
            size=sum(tensor.size for tensor in tensors),
            bytes=sum(tensor.nbytes for tensor in tensors),
            abs=float(sums.total_abs),
            square=float(sums.total_square),
            l1_penalty=total_penalty(l1_terms),
            l2_penalty=total_penalty(l2_terms),
        ),
        seconds=read.seconds,
        isa=read.isa,
        threads=read.threads,
        notes=read.notes,
    )
    text: str = options.form(report)
    return text


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
            raise ValueError(f"got a {type(rules).__name__}; wanted an object of names' patterns")
        found = resolve(
            {pattern: _regularizer(pattern, one) for pattern, one in rules.items()},
            tensors,
            [printable(tensor.name) for tensor in tensors],
        )
    except RecursionError as error:
        raise FileFault(path, "nested too deeply") from error
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
        return L1L2(**{key: _strength(str(value)) for key, value in strengths.items()})
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"regularizer[{pattern!r}]: {error}") from None


def _limbs(
    tensors: Sequence[Tensor], threads: int, mapped: bool, advance: Callable[[int], None]
) -> NDArray[np.int64]:
    limbs = np.zeros((len(tensors), 2, _core.LIMBS), np.int64)
    waiting: deque[tuple[Batch, Future[NDArray[np.int64]] | None]] = deque()
    nbytes, last = 0, -1  # what has been read

    def submitted(batch: Batch) -> Future[NDArray[np.int64]] | None:
        try:
            return pool.submit(_limbs_of, batch)
        except RuntimeError:  # the process may start no more threads
            return None

    def take_first() -> None:
        nonlocal nbytes, last
        batch, future = waiting.popleft()
        found = future.result() if future else _limbs_of(batch)
        limbs[batch.first : batch.first + batch.tensors] += found
        nbytes, last = nbytes + batch.nbytes, batch.first + batch.tensors - 1
        advance(batch.nbytes)

    # Each thread reads and sums batches of its own. They merge exactly, in any order.
    try:
        with ThreadPoolExecutor(threads) as pool:
            for batch in batches(tensors, BATCH, mapped=mapped):
                if len(waiting) == 2 * threads:
                    take_first()
                waiting.append((batch, submitted(batch)))
            while waiting:
                take_first()
    except KeyboardInterrupt:
        total = sum(tensor.nbytes for tensor in tensors)
        read = f"{nbytes:,} of {total:,} bytes had been read"
        if last >= 0 and (stored := tensors[last].stored):
            read += f", the last ones of {tensors[last].name!r} in {stored.source.path}"
        raise KeyboardInterrupt(f"interrupted: {read}") from None
    return limbs


def _limbs_of(batch: Batch) -> NDArray[np.int64]:
    limbs = fp.partial_sums(batch.read(), threads=1).limbs
    batch.check()
    return limbs


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
