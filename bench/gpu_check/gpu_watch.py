"""A pytest plugin for the check: the next process goes on where a hung or lost one ended.

    python -m pytest -p gpu_watch --journal FILE --patience SECONDS

Every test is written down in the journal when it begins and when it has ended, and those that the
journal has already are left out. A test that takes longer than the patience ends the process, with
the stacks of all threads on stderr: nothing less ends a call that never comes back from the driver.
After a failure from which the GPU does not recover in this process, no further test is begun.
Failures are printed at once, as the process may not live to print them together.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--journal", type=Path, required=True)
    parser.addoption("--patience", type=float, required=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Watch(config.option.journal, config.option.patience))


class Watch:
    def __init__(self, journal: Path, patience: float) -> None:
        self.journal, self.patience = journal, patience
        self.stderr = os.fdopen(os.dup(2), "w")  # the tests' own is captured
        self.outcome = "passed"
        # The machine's first use of the GPU may hang as well.
        faulthandler.dump_traceback_later(10 * patience, exit=True, file=self.stderr)

    def write(self, **words: Any) -> None:
        with self.journal.open("a") as file:
            print(json.dumps(words), file=file)

    @pytest.hookimpl(trylast=True)  # when those of other markers are gone
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = {json.loads(line).get("test") for line in self.journal.read_text().splitlines()}
        items[:] = [item for item in items if item.nodeid not in known]
        self.write(left=len(items))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            print(f"\n{report.nodeid}:\n{report.longreprtext}", file=self.stderr, flush=True)
            self.write(test=report.nodeid, outcome="not collected")

    def pytest_collection_finish(self) -> None:
        lost()  # makes the context on the GPU, whose time is not the first test's
        faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self.item, self.outcome = item, "passed"
        self.write(test=item.nodeid)
        faulthandler.dump_traceback_later(self.patience, exit=True, file=self.stderr)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcome = "failed"
            text = f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}"
            print(text, file=self.stderr, flush=True)
        elif report.skipped:
            self.outcome = "skipped"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        why = lost() if self.outcome == "failed" else ""
        faulthandler.cancel_dump_traceback_later()
        self.write(test=nodeid, outcome=self.outcome, lost=why)
        if why:
            self.item.session.shouldstop = f"the GPU is lost to this process: {why}"

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not session.shouldstop:
            self.write(finished=int(exitstatus))


def lost() -> str:
    """Why nothing more can be done on the GPU in this process; empty if it can."""
    try:
        sys.modules["cupy"].cuda.Device().synchronize()
    except KeyError:
        pass  # nothing has been done on it
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""
