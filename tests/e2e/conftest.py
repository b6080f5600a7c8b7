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


def pytest_collection_modifyitems(config, items):
    if not config.getoption("-m"):
        skip = pytest.mark.skip(reason="takes minutes: -m long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture
def origin():
    with Origin() as running:
        yield running
