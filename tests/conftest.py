"""What every test runs under: no settings of the user's, a cache of its own, the same examples every time."""

from __future__ import annotations

import sys
import tempfile

import pytest
from hypothesis import HealthCheck, settings

from fastconv import dispatch
from fastconv.backends.cpu import work
from fastconv.environment import VARIABLES

# Every run tries the same examples; `--hypothesis-profile=search` looks for new ones, and for longer.
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile("ci")


def pytest_configure(config):
    """Before anything is collected: the user's variables and cache stay out of the session."""
    patch = pytest.MonkeyPatch()
    for name in VARIABLES:
        patch.delenv(name, raising=False)
    cache = tempfile.TemporaryDirectory(prefix="fastconv-tests-")
    patch.setenv("FASTCONV_CACHE_DIR", cache.name)
    config.add_cleanup(cache.cleanup)
    config.add_cleanup(patch.undo)


@pytest.fixture(scope="session", autouse=True)
def _however_small():
    """Threads share the work of problems that they are not worth starting for: those are what tests can afford."""
    patch = pytest.MonkeyPatch()
    patch.setattr(work, "WORTH_SHARING", 0.0)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread():
    """PyTorch is a referee here, and test processes run side by side."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """A performance database for a test alone, and no plan from before."""
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    dispatch.forget()
    return tmp_path
