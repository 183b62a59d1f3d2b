"""How the check runs the tests of the `cuda` marker; gpu_watch.py is within their processes."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from __main__ import Check

# A test that waits for what never comes gives up by itself after 2 s, and can say why. Whatever
# takes longer than PATIENCE is ended with its process, and tried again at last, alone and with more
# patience, lest it is only slow.
PATIENCE, MORE_PATIENCE = 3.0, 20.0
MOST_FAILURES = 20


class TestRun:
    """The tests of the `cuda` marker, in as many processes as it takes: none can end the others."""

    def __init__(self, check: Check, files: list[Path], end: float, least: float) -> None:
        self.check, self.files, self.end = check, files, end
        self.least = least  # seconds; no process is begun with less
        self.outcomes: dict[str, str] = {}
        self.left = 0  # tests that were not begun
        self.suspect = ""

    def everything(self) -> None:
        journal = self.check.scratch / "journal"
        while True:
            known = len(self.outcomes)
            finished = self.process(journal, PATIENCE, "-m", "cuda", "--run-slow", *self.files)
            failures = sum(o not in ("passed", "skipped", "slow") for o in self.outcomes.values())
            stuck = len(self.outcomes) == known
            if finished or stuck or failures >= MOST_FAILURES or time.monotonic() > self.end:
                return

    def slow_ones_again(self) -> None:
        left, slow = self.left, [test for test, o in self.outcomes.items() if o == "slow"]
        for number, test in enumerate(slow):
            stopped_after = PATIENCE
            if self.end - time.monotonic() > self.least:
                self.process(self.check.scratch / f"journal{number}", MORE_PATIENCE, test)
                stopped_after = MORE_PATIENCE
            if self.outcomes[test] == "slow":
                self.outcomes[test] = f"hung, stopped after {stopped_after:g} s"
        self.left = left

    def process(self, journal: Path, patience: float, *what: Any) -> bool:
        """Runs what the journal does not have yet, in one process. True if that got to its end."""
        command = [sys.executable, *pytest_command(journal, patience, *what)]
        ran = self.check.run(command, max(1.0, self.end - time.monotonic()), "tests.log")
        records = whole_records(journal)
        begun = ""
        for record in records:
            if "left" in record:
                self.left = record["left"]
            if "outcome" in record:
                self.outcomes[record["test"]] = record["outcome"]
                begun = ""
                if record.get("lost"):
                    self.suspect = self.suspect or record["test"]
            elif "test" in record:
                begun = record["test"]
                self.left -= 1
        if begun:  # it has ended the process, or was stopped with it
            outcome = "not finished" if ran.status is None else "slow"
            if ran.status != 1 or not ran.line(r"Timeout \(\d"):
                outcome = "crashed" if ran.status is not None else outcome
            self.outcomes[begun] = outcome
            if outcome == "crashed":
                self.suspect = self.suspect or begun
            with journal.open("a") as file:
                print(json.dumps({"test": begun, "outcome": outcome}), file=file)
        return "finished" in records[-1] if records else False


def pytest_command(journal: Path, patience: float, *what: Any) -> list[Any]:
    """The arguments of python3; a journal that is not there yet is begun."""
    journal.touch()
    options: list[Any] = ["-p", "gpu_watch", "--journal", journal, "--patience", patience]
    options += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    options += ["-v", "--tb=short", "--no-summary", f"--maxfail={MOST_FAILURES}"]
    return ["-m", "pytest", *options, *what]


def whole_records(journal: Path) -> list[dict[str, Any]]:
    """What the journal has. A line that was not written to its end is taken out of it."""
    lines = []
    for line in journal.read_text(errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            lines.append((line, json.loads(line)))
    journal.write_text("".join(f"{line}\n" for line, _ in lines))
    return [record for _, record in lines]
