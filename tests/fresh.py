"""Running code in a process of its own, for what a process does only once: import, read its environment, die."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(code: str, *, fails: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code by a new interpreter that finds this package, and return what it printed.

    The process must end well, or badly with ``fails``. Its ``FASTCONV_*`` variables are those given here, and the
    cache directory, which every test has for itself.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTCONV_") or k == "FASTCONV_CACHE_DIR"}
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), kept.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def in_a_fresh_process(test: Callable[[], None]) -> Callable[[], None]:
    """Make a test run in a process of its own, under what `conftest` sets for all.

    A forked child has the locks of every library as they were, and nobody to release them. Here are no others' threads.
    """

    @functools.wraps(test)
    def run() -> None:
        python(f"""
from fastconv.backends.cpu import work
work.WORTH_SHARING = 0.0
from {test.__module__} import {test.__name__} as test
test.__wrapped__()
""")

    return run
