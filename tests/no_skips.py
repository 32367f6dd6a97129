"""The pytest option ``--no-skips``: a test that is skipped fails, with the reason. `.ci/run` uses it.

pytest finds these hooks because ``conftest.py`` imports them.
"""

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails")


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure is reported as skipped, too.
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
    """Of modules that skip themselves."""
    report = yield
    if collector.config.getoption("no_skips"):
        _fail(report)
    return report
