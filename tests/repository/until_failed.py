"""A plugin of pytest's: of each row's tests those behind the first that fails are skipped."""

import pytest

FAILED = set()


def rows(item):
    return {mark.kwargs["row"] for mark in item.iter_markers("failure")}


def pytest_runtest_setup(item):
    if rows(item) <= FAILED:
        pytest.skip("a test of its row has failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.when == "call" and report.failed:
        FAILED.update(rows(item))
    return report
