"""The memory that an entrant takes: run in a process of its own, whose largest size the system knows."""

from __future__ import annotations

import json
import resource
import sys

from benchmarks.measure import pinned
from benchmarks.networks.entrants import ENTRANTS, Job


def _largest() -> int:
    """Return the most bytes that this process has had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> None:
    name, text = sys.argv[1:]
    job = Job(*json.loads(text))
    entrant = next(entrant for entrant in ENTRANTS if entrant.name == name)
    for package in entrant.needs:
        __import__(package)
    small = job._replace(network="lenet5", batch=1)
    with pinned(job.threads):
        entrant.prepare(small)()  # whatever is loaded and compiled once
        before = _largest()
        run = entrant.prepare(job)
        run()
        run()
    print(_largest() - before)


if __name__ == "__main__":
    main()
