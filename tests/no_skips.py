"""The pytest option ``--no-skips``: a skipped test fails, with the reason of the skip. `.ci/run` uses the option.

pytest finds these hooks because ``conftest.py`` imports them.
"""

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails")


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    # pytest reports an expected failure as skipped as well.
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"not run, which --no-skips forbids: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if item.config.getoption("no_skips"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Handles modules that skip themselves as a whole."""
    report = yield
    if collector.config.getoption("no_skips"):
        _fail(report)
    return report
