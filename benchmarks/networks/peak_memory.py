"""The memory that an entrant takes: run in a process of its own, whose largest size the system knows."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.measure import pinned
from benchmarks.networks.entrants import ENTRANTS, Job

_SELF = Path("/proc/self")


def _largest() -> int:
    """Return the most bytes that this process has had in memory, since the last `_settle` where that can be told."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", (_SELF / "status").read_text())
        if found:
            return int(found[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _settle() -> None:
    """Give what is free back to the system, and let it forget how large the process was."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


def main() -> None:
    name, text = sys.argv[1:]
    job = Job(*json.loads(text))
    entrant = next(entrant for entrant in ENTRANTS if entrant.name == name)
    for package in entrant.needs:
        __import__(package)
    small = job._replace(network="lenet5", batch=1)
    with pinned(job.threads):
        entrant.prepare(small, False)()  # whatever is loaded and compiled once
        _settle()
        before = _largest()
        run = entrant.prepare(job, False)
        run()
        run()
    print(_largest() - before)


if __name__ == "__main__":
    main()
