"""An image larger than the memory allowed, through a chain of filters in chunks: `python -m benchmarks.dask_image`.

The image is made chunk by chunk, goes through two convolutions (5x5 to some channels with ReLU, 3x3 back to one), and
ends as a small picture: its means over squares. Neither it nor what lies between is ever whole in memory. It runs on
Dask's threaded scheduler and on a `dask.distributed.LocalCluster` of two processes, each time in a new process, and
prints the time, and the peak of the resident memory of all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
SCHEDULERS = ("threads", "processes")

# The C library keeps what is freed, up to 32 MiB a piece, unless it is told not to. Dask tells its own processes so.
ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "65536"}


def chain(size: int, chunk: list[int], channels: int, square: int) -> Any:
    """Return the small picture as a Dask array: (1, size / square, size / square)."""
    import dask.array as da

    import fastconv.dask as fd

    rng = np.random.default_rng(0)
    first = rng.standard_normal((channels, 1, 5, 5), dtype=np.float32) / 5
    second = rng.standard_normal((1, channels, 3, 3), dtype=np.float32) / 3
    chunks = (1, *chunk)
    image = da.random.default_rng(0).random((1, size, size), dtype=np.float32, chunks=chunks)
    edges = fd.conv2d(image, first, padding=2, padding_mode="reflect", activation="relu")
    return fd.avg_pool2d(fd.conv2d(edges, second, padding="same"), square)


class Peak(threading.Thread):
    """The most memory that this process and its children held together, looked at every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.01):
            self.bytes = max(self.bytes, sum(map(_proportional, _family())))

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.bytes


def _family() -> list[int]:
    """Return the numbers of this process and of all below it."""
    found, todo = [], [int(Path("/proc/self").readlink().name)]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                todo += map(int, children.read_text().split())
            except OSError:  # gone meanwhile
                continue
    return found


def _proportional(pid: int) -> int:
    """Return the resident memory of a process, without pages that it shares with files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def run(scheduler: str, size: int, chunk: list[int], channels: int, square: int, workers: int) -> dict[str, Any]:
    """Compute the picture in this process or below it, and return what that took."""
    import dask

    picture = chain(size, chunk, channels, square)
    peak = Peak()
    peak.start()
    if scheduler == "threads":
        start = time.perf_counter()
        with dask.config.set(scheduler="threads", num_workers=workers):
            result = picture.compute()
        seconds = time.perf_counter() - start
    else:
        from dask.distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
            Client(cluster),
        ):
            start = time.perf_counter()
            result = picture.compute()
            seconds = time.perf_counter() - start
    return {
        "scheduler": scheduler,
        "workers": workers,
        "seconds": seconds,
        "peak": peak.stop(),
        "image": 4 * size * size,
        "between": 4 * channels * size * size,
        "sum": float(result.astype(np.float64).sum()),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dask_image", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=30_000, help="rows and columns of the image")
    # A row of chunks waits for the next one: the fewer rows a chunk has, the less waits.
    parser.add_argument("--chunk", type=int, nargs=2, default=[300, 3_000], help="rows and columns of a chunk")
    parser.add_argument("--channels", type=int, default=4, help="channels between the two filters")
    parser.add_argument("--square", type=int, default=100, help="rows and columns of the squares averaged at the end")
    parser.add_argument("--workers", type=int, default=2, help="threads, or processes of one thread each")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--here", action="store_true", help="run in this process, and print JSON")
    given = parser.parse_args(arguments)
    form = {name: getattr(given, name) for name in ("size", "chunk", "channels", "square", "workers")}
    if given.here:
        print(json.dumps(run(given.schedulers[0], **form)))
        return 0
    for scheduler in given.schedulers:
        words = [word for name, value in form.items() for word in (f"--{name}", *map(str, np.ravel(value)))]
        command = [sys.executable, "-m", "benchmarks.dask_image", "--here", "--schedulers", scheduler, *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ENVIRONMENT)
        found = json.loads(done.stdout)
        print(
            f"{scheduler:10} {found['workers']} workers: {found['seconds']:.1f} s, peak memory "
            f"{found['peak'] / MIB:.0f} MiB; image {found['image'] / MIB:.0f} MiB, between the filters "
            f"{found['between'] / MIB:.0f} MiB, sum {found['sum']:.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
