"""The environment variables, all of them, in one table. README's table is checked against it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple


class Variable(NamedTuple):
    """One environment variable: how its text is read, what holds without it, what it does."""

    parse: Callable[[str], Any]
    default: Any
    meaning: str


def _flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("expected 0 or 1")
    return words[text.lower()]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("expected a positive integer")
    return value


def _simd(text: str) -> str:
    if text.lower() not in ("avx512", "avx2", "neon", "none"):
        raise ValueError("expected avx512, avx2, neon or none")
    return text.lower()


def _bytes(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30}
    number, shift = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 0)
    value = int(number) << shift
    if value < 0:
        raise ValueError("expected a size that is not negative")
    return value


VARIABLES: dict[str, Variable] = {
    "FASTCONV_BACKEND": Variable(str, None, "use only this backend (`options(backend=)`)"),
    "FASTCONV_ALGORITHM": Variable(str, None, "use only this algorithm (`options(algorithm=)`)"),
    "FASTCONV_MAX_WORKSPACE": Variable(
        _bytes, 64 << 20, "bytes of scratch memory a thread may use; K, M, G are understood (`options(max_workspace=)`)"
    ),
    "FASTCONV_DETERMINISTIC": Variable(
        _flag, False, "1: only algorithms that are bit-identical for any thread count (`options(deterministic=)`)"
    ),
    "FASTCONV_STRICT": Variable(_flag, False, "1: only algorithms that sum plainly (`options(strict=)`)"),
    "FASTCONV_TF32": Variable(_flag, False, "1: float32 may be rounded to TF32 on a GPU (`options(tf32=True)`)"),
    "FASTCONV_THREADS": Variable(_positive, None, "number of threads; all cores if unset (`options(threads=)`)"),
    "FASTCONV_AUTOTUNE": Variable(_flag, False, "1: measure every problem when it is first met (`autotune()`)"),
    "FASTCONV_VERBOSE": Variable(_flag, False, "1: log every choice and its reason to standard error"),
    "FASTCONV_SIMD": Variable(_simd, None, "force a narrower vector: avx512, avx2, neon or none"),
    "FASTCONV_CACHE_DIR": Variable(str, None, "where the performance database lives; the user's cache if unset"),
}


def read(name: str) -> Any:
    """Return the value of a variable, or its default.

    Raises
    ------
    ValueError
        If the text cannot be read; the message names the variable.
    """
    variable = VARIABLES[name]
    text = os.environ.get(name, "")
    if not text:
        return variable.default
    try:
        return variable.parse(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: {error} ({variable.meaning})") from None
