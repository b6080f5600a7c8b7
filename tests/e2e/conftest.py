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


@pytest.fixture
def origin():
    with Origin() as running:
        yield running
