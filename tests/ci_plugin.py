"""A pytest plugin for continuous integration: a test that was skipped for want of a package fails the run.

    python -m pytest -p tests.ci_plugin

On a developer's machine a test may be skipped because torch is not installed; where everything was installed on
purpose, such a skip hides a test that nobody ran. Only what CI cannot have is forgiven: a GPU, and the `shared/` data.
"""

from __future__ import annotations

import pytest

FORGIVEN = ("shared/", "no CUDA GPU")
_refused = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_refused] = []
    config.pluginmanager.register(_Watch(config.stash[_refused]))


class _Watch:
    def __init__(self, refused: list[str]) -> None:
        self.refused = refused

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._judge(report)

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(text in reason for text in FORGIVEN):
            self.refused.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    passed = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if session.config.stash[_refused] and passed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if refused := config.stash[_refused]:
        terminalreporter.section("skipped, and CI does not forgive it", sep="=", red=True)
        for line in refused:
            terminalreporter.line(line)
