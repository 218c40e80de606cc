"""How long work shows how far it is, on standard error: with rich if that is installed, else line by line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Sequence[T], description: str, name: Callable[[T], str] = str
) -> Iterator[tuple[T, Callable[[str], None]]]:
    """Yield each item, with a function that takes the name of the part of the work that begins.

    Parameters
    ----------
    items : sequence
        What is worked on.
    description : str
        What is done, such as ``tuning``.
    name : callable
        How an item is called.
    """
    shown = _bar if find_spec("rich") is not None and sys.stderr.isatty() else _lines
    yield from shown(items, description, name)


def _lines(items: Sequence[T], description: str, name: Callable[[T], str]) -> Iterator[tuple[T, Callable[[str], None]]]:
    for number, item in enumerate(items, 1):
        print(f"{description} {number}/{len(items)}: {name(item)}", file=sys.stderr, flush=True)
        yield item, lambda part: None


def _bar(items: Sequence[T], description: str, name: Callable[[T], str]) -> Iterator[tuple[T, Callable[[str], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
    # What is printed meanwhile goes above the bar, unless it goes to a file or a pipe.
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()
    ) as display:
        task = display.add_task(description, total=len(items))
        for item in items:
            text = f"{description} {name(item)}"
            display.update(task, description=text)
            yield item, lambda part, text=text: display.update(task, description=f"{text}  {part}")  # type: ignore[misc]
            display.advance(task)
