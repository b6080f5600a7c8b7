"""What every end-to-end test shares: a programmable origin, and enough file descriptors."""

import resource
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from slow_origin import Origin  # noqa: E402


def pytest_configure(config):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# What measures time closely, or takes so much of the machine that others would.
ALONE = {
    "test_bulkheads",
    "test_busy_poll",
    "test_coalesce",
    "test_edges",
    "test_hot_path",
    "test_idle",
    "test_memory",
    "test_rate_limits",
    "test_reload",
    "test_upgrade",
    "test_warm",
    "test_watchdog",
}


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.module.__name__ in ALONE:
            item.add_marker(pytest.mark.alone)
    if not config.getoption("-m"):
        skip = pytest.mark.skip(reason="takes minutes: -m long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture
def origin():
    with Origin() as running:
        yield running
