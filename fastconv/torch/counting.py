"""Who computed what: calls that fastconv took, and calls left to PyTorch with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# A reason may name sizes; so many different ones are kept apart.
_MOST = 256


@dataclass
class Stats:
    """Calls by function, as `stats` returns them.

    Attributes
    ----------
    computed : Counter
        Calls that fastconv computed, by the function's name.
    left : Counter
        Calls left to PyTorch, by the function's name and the reason.
    """

    computed: Counter[str] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        rows = [f"{count:8}  {name}: fastconv" for name, count in self.computed.most_common()]
        rows += [f"{count:8}  {name}: PyTorch, {reason}" for (name, reason), count in self.left.most_common()]
        return "\n".join(rows) or "no calls"


_stats = Stats()
computed = _stats.computed


def stats(*, reset: bool = False) -> Stats:
    """Return how many calls fastconv computed, and how many it left to PyTorch, and why.

    Calls of `fastconv.torch`'s functions and of those that `use` sends there are counted; what runs inside of
    compiled graphs is not.

    Parameters
    ----------
    reset : bool
        Count from zero afterwards.

    Returns
    -------
    Stats
        A copy, which prints as a table.
    """
    copy = Stats(_stats.computed.copy(), _stats.left.copy())
    if reset:
        _stats.computed.clear()
        _stats.left.clear()
    return copy


def leave(name: str, reason: object, theirs: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Have PyTorch compute, and count that."""
    key = name, str(reason).partition("\n")[0]
    if key not in _stats.left and len(_stats.left) >= _MOST:
        key = name, "other reasons"
    _stats.left[key] += 1
    return theirs(*args, **kwargs)
