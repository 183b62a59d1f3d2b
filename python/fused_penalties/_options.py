"""The options of the command, and what --help says."""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Callable
from itertools import groupby
from typing import Any, NoReturn

import fused_penalties as fp

from ._completion import SHELLS
from ._parts import MOST_PARTS
from ._report import FORMULAS, HEADINGS, ORDERS, STRENGTH, as_csv, as_json, printable

COMMANDS = """\
Sums and penalties of the weights in files, in one read.

examples:
    fused-penalties report model.safetensors
    fused-penalties report --help
"""

DESCRIPTION = """\
examples:
    fused-penalties report model.safetensors
    fused-penalties report checkpoint/ --sort largest
    fused-penalties report model.pt --fail-on nonfinite
    fused-penalties report model.gguf --plot layers.png
    find runs -name '*.npz' | fused-penalties report -
    fused-penalties report w.npz --rules rules.json --csv

Print each tensor's sum of absolute values, sum of squares, root mean square and
largest magnitude, and the L1 and L2 penalties that a regularizer makes of them.

FILE is a .npy, .npz, .safetensors or .gguf, a sharded model's
.safetensors.index.json or .bin.index.json, what torch.save wrote (.pt, .pth,
.bin, .ckpt), or a folder: by its index, else its .safetensors, in which parts
that torch.distributed.checkpoint's HuggingFaceStorageWriter saved of one tensor
are one, else each weight file in it. - stands for the files that are listed on
standard input, one on a line. Pickles are loaded by nothing but
torch.load(weights_only=True).
"""

NOTES = """\
table:
  On a terminal it has the columns that fit; --columns chooses. Columns: COLUMNS.
  Tensors come as in their file, those of .safetensors, whose order says nothing,
  by their names, layers.2 before layers.10.

scales:
    keras    L1 = l1·Σ|w|, L2 = l2·Σw²
    contrib  L1 = l1·Σ|w|, L2 = l2·Σw²/2
  As keras.regularizers, and as tf.contrib.layers and tf.nn.l2_loss. A strength is
  rounded to the weights' dtype before it multiplies (float32 for 16-bit weights),
  and the penalty is rounded to that dtype.

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

picture:
  --plot draws Σ|w|/n and the root mean square of each layer, the tensors whose
  names differ after the last dot or slash only. Marked are those with less than
  a hundredth, or more than a hundred times, the median root mean square of the
  layers of their kind, whose names differ in numbers only (of all layers where
  there are not three of the kind), and those with NaN or infinity.

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
    0    no fault
    1    --fail-on has found what it looks for
    2    a file or an option is at fault, whatever
         --fail-on finds
    130  Ctrl-C
  With a line on stderr for each fault. A file at fault is left out, and the
  report is on the others; a part has to have all of them.
"""

MERGE = """\
examples:
    fused-penalties merge part*.npz
    find parts -name '*.npz' | fused-penalties merge -

Print the report whose parts were saved by `fused-penalties report --part K/N
--save PART`. All N have to be given, in any order. Options as in `report`,
whose --help explains them.
"""

COMPLETION = """\
examples:
    eval "$(fused-penalties completion bash)"
    eval "$(fused-penalties completion zsh)"
    fused-penalties completion fish | source

Print a script with which the shell completes the command's options. The line
belongs in ~/.bashrc, ~/.zshrc (after compinit) or ~/.config/fish/config.fish.
"""


Run = Callable[[argparse.Namespace], tuple[str, int]]


def command_parser(report: Run, merge: Run, completion: Run) -> argparse.ArgumentParser:
    """The parser, whose options have what runs the command as `run`."""
    parser = _OneLineParser(
        prog="fused-penalties", description=COMMANDS, formatter_class=_Paragraphs
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {fp.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, help: str, description: str, given: str) -> Any:
        added = commands.add_parser(
            name,
            help=help,
            description=description,
            formatter_class=_Paragraphs,
            usage=f"%(prog)s {given}",
        )
        added.set_defaults(run=run, part=None, save=None)
        return added

    help = "the sums and penalties of the tensors in weight files"
    one = command("report", report, help, DESCRIPTION, "[OPTION]… FILE…")
    one.epilog = NOTES.replace("COLUMNS", ", ".join(HEADINGS))
    one.add_argument("files", nargs="+", metavar="FILE")
    _add_printing(one.add_argument, one.add_mutually_exclusive_group())
    _add_reading(one.add_argument)
    help = "the report whose parts `report --part` has saved"
    one = command("merge", merge, help, MERGE, "[OPTION]… PART…")
    one.add_argument("files", nargs="+", metavar="PART")
    _add_printing(one.add_argument, one.add_mutually_exclusive_group())
    help = "what makes a shell complete the options"
    one = command("completion", completion, help, COMPLETION, "SHELL")
    one.add_argument("shell", choices=SHELLS, metavar="bash|zsh|fish")
    return parser


class _Paragraphs(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal; lines that are indented by four stay."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        def indent_of(line: str) -> int:
            return len(line) - len(line.lstrip()) if line else -1

        filled = list[str]()
        for depth, lines in groupby(text.splitlines(), indent_of):
            if 0 <= depth < 4:
                spaces = " " * depth
                filled += textwrap.wrap(
                    " ".join(line.strip() for line in lines),
                    width,
                    initial_indent=spaces,
                    subsequent_indent=spaces,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            else:
                filled += lines
        return "\n".join(filled)


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


def _add_printing(add: Callable[..., Any], forms: Any) -> None:
    add("--l1", type=strength, metavar="X", help=f"L1 strength (default: {STRENGTH})")
    add("--l2", type=strength, metavar="X", help=f"L2 strength (default: {STRENGTH})")
    add("--rules", metavar="FILE", help="strengths by tensor names, from a JSON file: see below")
    add("--scale", choices=FORMULAS, default="keras", help="L2 without or with ½ (default: keras)")
    add(
        "--sort",
        choices=ORDERS,
        default="file",
        help="names rising, numbers falling (default: as in the file)",
    )
    add(
        "--columns",
        type=_columns,
        default=[],
        metavar="NAME,…",
        help="what the table has beside the names: see below",
    )
    add(
        "--fail-on",
        choices=["nonfinite"],
        help="exit with status 1 if a tensor has NaN or infinity",
    )
    add(
        "--plot",
        metavar="FILE.png",
        help="draw the layers too, in a .png, .svg or .pdf (needs the extra [plot]): see below",
    )
    for option, form in ("--json", as_json), ("--csv", as_csv):
        what = f"print {option[2:].upper()}"
        forms.add_argument(option, dest="form", action="store_const", const=form, help=what)


def misfit(options: argparse.Namespace) -> str | None:
    """What is wrong with options that are each right."""
    if "files" not in options:  # which completion does not have
        return None
    if options.rules is not None and (options.l1, options.l2) != (None, None):
        return "argument --rules: not allowed with argument --l1 or --l2"
    if (options.part is None) != (options.save is None):
        return "arguments --part and --save: wanted both or none of them"
    if options.columns and options.form:
        return "argument --columns: not allowed with --json and --csv, which have all"
    printing = {
        "--l1": options.l1 is not None,
        "--l2": options.l2 is not None,
        "--rules": options.rules is not None,
        "--scale": options.scale != "keras",
        "--sort": options.sort != "file",
        "--columns": options.columns,
        "--fail-on": options.fail_on,
        "--plot": options.plot,
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


def strength(text: str) -> float:
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


def _columns(text: str) -> list[str]:
    keys = [key.strip() for key in text.split(",")]
    if odd := [key for key in keys if key not in HEADINGS]:
        raise argparse.ArgumentTypeError(f"got {odd[0]!r}; wanted some of {', '.join(HEADINGS)}")
    return [*dict.fromkeys(keys)]
