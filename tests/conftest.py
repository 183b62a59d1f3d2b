"""What every test shares: the instruction sets of this machine, hypothesis profiles, slow tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import fused_penalties as fp

# The ISA is a fixture and stays the same for all examples of a test, which is what is wanted.
settings.register_profile(
    "local",
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


@pytest.fixture(params=fp._core.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with each instruction set that this processor has."""
    previous = fp._core.use_isa(request.param)
    yield request.param
    fp._core.use_isa(previous)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--all-peers",
        action="store_true",
        help="fail if a test is skipped for want of anything but hardware, a Python or a compiler",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.stash[SLOW_LEFT_OUT] = len(slow)
    config.hook.pytest_deselected(items=slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.config.getoption("--all-peers"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2]
        if not re.search(r"\b(GPU|no CUDA compiler|this compiler|processor|this Python)\b", reason):
            reporter.write_line(f"must not be skipped here: {report.nodeid}: {reason}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out = terminalreporter.config.stash.get(SLOW_LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(f"{left_out} slow tests were left out: --run-slow runs them")


SLOW_LEFT_OUT = pytest.StashKey[int]()
