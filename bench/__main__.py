"""The benchmarks of fused-penalties: what it takes, beside the machine's limits and other ways."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def said_of(missing: ModuleNotFoundError) -> str:
    package = str(missing.name).partition(".")[0]
    return f"{package} is not installed; wanted: pip install '.[bench]'"


try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from bench import cases, child, compiled, machine, peers, results, tables
    from bench.settings import Settings
except ModuleNotFoundError as missing:
    sys.exit(f"python -m bench: {said_of(missing)}")

# With --quick: when each case has to be done, in seconds after the start.
QUICK = {"cpu": 18, "plan": 27, "frameworks": 35, "scale": 39, "accuracy": 46, "gpu": 46}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("list", help="the cases and their parts, and the peers that are installed")

    run = commands.add_parser("run", help="measure, print tables, and write the figures to a file")
    run.add_argument(
        "cases", nargs="*", metavar="CASE", help="such as cpu, or cpu/cache for one part (all)"
    )
    pace = run.add_mutually_exclusive_group()
    pace.add_argument("--quick", action="store_true", help="under a minute in all, smaller works")
    pace.add_argument("--full", action="store_true", help="more rounds, larger works")
    run.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="add the figures to this JSON file (bench-results/DATE-PROCESSOR-ISA.json)",
    )

    compare = commands.add_parser("compare", help="our times in two files of figures")
    compare.add_argument("a", type=Path, metavar="A.json")
    compare.add_argument("b", type=Path, metavar="B.json")

    draw = commands.add_parser("draw", help="pictures and a page of files of figures")
    draw.add_argument("files", nargs="+", type=Path, metavar="FILE")

    options = parser.parse_args(arguments)
    console = Console()
    try:
        if options.command == "list":
            list_all(console)
        elif options.command == "compare":
            first, second = map(results.read, (options.a, options.b))
            console.print(tables.of_comparison(first, second))
        elif options.command == "draw":
            draw_all(console, options.files)
        else:
            options.pace = "quick" if options.quick else "full" if options.full else "default"
            return run_all(console, parser, options)
    except results.Unusable as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.exit(1, f"python -m bench: {said_of(error)}\n")
    return 0


def list_all(console: Console) -> None:
    for name in cases.NAMES:
        case = cases.load(name)
        console.print(f"[bold]{name}[/bold]  {case.__doc__.splitlines()[0]}")
        for part, text in case.PARTS.items():
            console.print(f"  {name}/{part}: {text}", highlight=False)
    console.print("\n[bold]peers[/bold]")
    installed = machine.versions()
    for module, packages in peers.PACKAGES.items():
        found = [f"{name} {installed[name]}" for name in packages if name in installed]
        missing = "not installed" if packages else "compiled at first use"
        console.print(f"  {module.removeprefix('with_')}: {found[0] if found else missing}")


def chosen(names: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The parts to run of each case, in the order of `list`."""
    asked: dict[str, set[str]] = {}
    for name in names or cases.NAMES:
        case, _, part = name.partition("/")
        if case not in cases.NAMES:
            parser.error(f"CASE: got {case!r}; wanted one of {', '.join(cases.NAMES)}")
        parts = cases.load(case).PARTS
        if part and part not in parts:
            parser.error(f"CASE: got {name!r}; {case} has the parts {', '.join(parts)}")
        asked.setdefault(case, set()).update([part] if part else parts)
    return {
        case: [part for part in cases.load(case).PARTS if part in asked[case]]
        for case in cases.NAMES
        if case in asked
    }


def run_all(console: Console, parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    started = time.time()
    parts = chosen(options.cases, parser)
    words = [*options.cases, *([f"--{options.pace}"] if options.pace != "default" else [])]
    figures = results.new(" ".join(["python -m bench run", *words]))
    file = options.save or results.usual_file(figures)
    if options.save and not file.parent.is_dir():
        parser.error(f"argument --save: {file.parent} is not a directory")
    old = results.read(file) if file.exists() else None
    if old:
        results.joined(old, figures, file)  # which says now if they do not belong together
    package = figures["package"]
    console.print(
        f"{figures['machine']['name']}; fused-penalties {package['version']}, {package['isa']}"
    )
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[compiled.FOLDER] = folder
        for case, of_case in parts.items():
            deadline = started + QUICK[case] if options.pace == "quick" else float("inf")
            before = len(figures["rows"])
            try:
                measure(console, case, of_case, Settings(options.pace, deadline), figures)
            except child.Failed as error:
                console.print(f"{case}: failed:\n{error}", markup=False, style="red")
                failed.append(case)
            results.write(file, figures, old)  # now, lest it is lost when a later case is stopped
            if rows := figures["rows"][before:]:
                console.print(tables.of_rows(rows, case))
    whys = dict.fromkeys(figures["left_out"].values())
    for why in whys:
        names = "; ".join(what for what, its in figures["left_out"].items() if its == why)
        console.print(f"left out, {why}: {names}", highlight=False, markup=False)
    console.print(f"figures: {file}", highlight=False)
    try:
        draw_all(console, [file])
    except ModuleNotFoundError as error:
        console.print(f"no pictures: {said_of(error)}", markup=False)
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def measure(
    console: Console, case: str, parts: list[str], settings: Settings, figures: dict[str, Any]
) -> None:
    """The rows of one case go into the figures as they come."""
    columns = (
        TextColumn(f"{case:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=0)

        def expect(more: int) -> None:
            progress.update(task, total=progress.tasks[0].total + more)

        settings.expect = expect
        settings.doing = lambda what: progress.update(task, description=what)
        settings.leave_out = figures["left_out"].__setitem__
        for row in cases.load(case).run(parts, settings):
            progress.advance(task)
            figures["rows"].append(row)


def draw_all(console: Console, files: list[Path]) -> None:
    """The pictures lie in a folder beside the first file, with its name."""
    from bench.draw import draw  # here, as `run` needs no matplotlib

    folder = files[0].with_suffix("")
    draw(files, folder)
    console.print(f"pictures: {folder}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
