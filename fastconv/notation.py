"""The text form of a problem: what the command line takes, logs print and the performance database is keyed by.

``conv2d:fprop n1 ic64 ih56 iw56 oc64 kh3 kw3 p1 f32`` is a 3x3 convolution of a 56x56 map. The first word is
the op and the direction (``fprop`` if left out); every other word is a name and a value, or a flag:

- sizes: ``n``, ``ic`` (or ``c``), ``oc``, ``g``; per axis ``ih iw``, ``kh kw``, ``oh ow`` (adaptive pools and
  max_unpool only), with ``id``, ``kd``, ``od`` in three dimensions;
- ``s``, ``p``, ``d`` for stride, padding and dilation on every axis, ``sh``, ``pw`` and so on for one. A
  padding of two numbers, ``ph0:1``, is before and after. ``psame`` pads so that the output is
  ``ceil(input / stride)``;
- the same one-letter form sets every axis of a size: ``i56 k3``;
- flags: ``f32 f64 f16 bf16``, ``channels_last``, ``reflect replicate circular``, ``bias`` (or
  ``bias_per_position``), ``relu`` and the other activations, ``residual``, ``prepacked``, ``cuda``; for pools
  ``ceil``, ``exclude_pad``, ``indices``, ``int16_indices`` and ``int32_indices`` (how they are stored), ``div3`` (a
  divisor), ``norm2`` (an exponent).

A word that means nothing to the op, or says again what another has said, is an error.
"""

from __future__ import annotations

import re
from typing import Any

from fastconv.problem import ACTIVATIONS, PADDING_MODES, ConvProblem, PoolProblem
from fastconv.record import Problem, axes_of, stride_follows_kernel
from fastconv.sizes import AXES, same_padding

_DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16"}
_DTYPE_WORDS = {v: k for k, v in _DTYPES.items()}
_WORD = re.compile(r"([a-z]+?)(-?\d[\d.:e+-]*|same)$")
_PER_AXIS = {"i": "input_size", "k": "kernel_size", "o": "output_size", "s": "stride", "d": "dilation", "p": "padding"}
_LETTERS = {field: letter for letter, field in _PER_AXIS.items()}
_INTEGERS = {"n": "n", "c": "c", "ic": "c", "oc": "oc", "g": "groups", "div": "divisor_override"}
_DEFAULTS: dict[str, Any] = {"stride": 1, "dilation": 1, "padding": (0, 0)}

# word -> (field, value), for the words that carry no number
_FLAGS: dict[str, tuple[str, Any]] = {
    **{word: ("dtype", dtype) for word, dtype in _DTYPES.items()},
    **{mode: ("padding_mode", mode) for mode in PADDING_MODES if mode != "zeros"},
    **{name: ("activation", name) for name in ACTIVATIONS},
    "channels_last": ("layout", "channels_last"),
    "bias": ("bias", "channel"),
    "bias_per_position": ("bias", "position"),
    "residual": ("residual", True),
    "prepacked": ("prepacked", True),
    "cuda": ("device", "cuda"),
    "ceil": ("ceil_mode", True),
    "exclude_pad": ("count_include_pad", False),
    "indices": ("return_indices", True),
    "int32_indices": ("index_dtype", "int32"),
    "int16_indices": ("index_dtype", "int16"),
}


def format_problem(problem: ConvProblem | PoolProblem) -> str:
    """Return the canonical text of a problem; `parse_problem` gives the problem back."""
    axes = AXES[len(AXES) - problem.ndim :]

    def sizes(field: str) -> list[str]:
        return [f"{_LETTERS[field]}{a}{v}" for a, v in zip(axes, getattr(problem, field), strict=True)]

    words = [f"{problem.op}:{problem.direction}", f"n{problem.n}"]
    words += [f"ic{problem.ic}" if isinstance(problem, ConvProblem) else f"c{problem.c}"]
    words += sizes("input_size")
    if isinstance(problem, ConvProblem):
        words += [f"oc{problem.oc}"]
    words += sizes("kernel_size" if "kernel_size" in problem.fields_of(problem.op) else "output_size")
    for letter, values, default in (
        ("s", problem.stride, None if stride_follows_kernel(problem.op) else 1),
        ("p", problem.padding, (0, 0)),
        ("d", problem.dilation, 1),
    ):
        if len(set(values)) == 1:
            words += [letter + _value(values[0])] if values[0] != default else []
        else:
            words += [letter + a + _value(v) for a, v in zip(axes, values, strict=True)]
    if isinstance(problem, ConvProblem) and problem.groups > 1:
        words.append(f"g{problem.groups}")
    if isinstance(problem, PoolProblem):
        if problem.divisor_override is not None:
            words.append(f"div{problem.divisor_override}")
        if problem.kind == "lp_pool":
            words.append(f"norm{problem.norm_type!r}".removesuffix(".0"))
    words += [
        word
        for word, (name, value) in _FLAGS.items()
        if name != "dtype" and getattr(problem, name, None) == value and type(getattr(problem, name)) is type(value)
    ]
    return " ".join([*words, _DTYPE_WORDS[problem.dtype]])


def _value(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return str(value[0]) if value[0] == value[1] else f"{value[0]}:{value[1]}"


def parse_problem(text: str) -> ConvProblem | PoolProblem:
    """Return the problem that a text describes.

    Raises
    ------
    ValueError
        If the text is not of the form above, or describes no valid problem; the message names the word.
    """
    head, *words = text.split() or [""]
    op, _, direction = head.partition(":")
    kind: type[ConvProblem | PoolProblem] | None = next((c for c in (ConvProblem, PoolProblem) if op in c.OPS), None)
    if kind is None:
        raise ValueError(
            f"problem: unknown op {op!r}; expected conv1d, conv2d, conv3d, locally_connected2d, linear, unfold "
            "or a pool such as max_pool2d"
        )
    read: dict[tuple[str, str], tuple[str, Any]] = {}
    for word in words:
        field, axis, value = _read_word(word)
        if kind is ConvProblem and field == "c":
            field = "ic"
        if field not in kind.fields_of(op):
            raise ValueError(f"problem: {word!r} means nothing to {op}")
        if (field, axis) in read:
            raise ValueError(f"problem: {word!r} says again what {read[field, axis][0]!r} says")
        read[field, axis] = word, value
    named = [len(AXES) - AXES.index(axis) for _, axis in read if axis]
    axes = AXES[len(AXES) - axes_of(op, max(named, default=2)) :]
    return kind(**{"op": op, "direction": direction or "fprop", **_fields(kind, op, axes, read)})


def _read_word(word: str) -> tuple[str, str, Any]:
    """Return the field that a word speaks of, the axis (or none) and the value."""
    if word in _FLAGS:
        name, value = _FLAGS[word]
        return name, "", value
    match = _WORD.match(word)
    if match is None:
        raise ValueError(
            f"problem: cannot read {word!r}; expected a name and a number such as 'ih56', or a flag such as 'bias'"
        )
    name, number = match.groups()
    try:
        if name in _INTEGERS:
            return _INTEGERS[name], "", int(number)
        if name == "norm":
            return "norm_type", "", float(number)
        if name[0] in _PER_AXIS and name[1:] in ("", *AXES):
            return _PER_AXIS[name[0]], name[1:], _padding(number) if name[0] == "p" else int(number)
        raise ValueError
    except ValueError:
        raise ValueError(f"problem: cannot read {word!r}") from None


def _padding(number: str) -> Any:
    if number == "same":
        return number
    before, _, after = number.partition(":")
    return int(before), int(after or before)


def _fields(kind: type[Problem], op: str, axes: str, read: dict[tuple[str, str], tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a problem from what was read: (field, axis) to (word, value)."""
    values = {field: value for (field, _), (_, value) in read.items() if field not in _LETTERS}
    for name in ("ic", "oc"):
        if name in kind.fields_of(op) and name not in values:
            raise ValueError(f"problem: {name} is missing from {op}")
    values.setdefault("n", 1)
    known = [field for field in _LETTERS if field in kind.fields_of(op)]
    values |= {field: _spread(field, op, axes, read) for field in known}
    if stride_follows_kernel(op) and not any(field == "stride" for field, _ in read):
        values["stride"] = values["kernel_size"]
    if "padding" in known:
        windows = (values[field] for field in ("input_size", "kernel_size", "stride", "dilation"))
        values["padding"] = tuple(
            same_padding(*window) if pad == "same" else pad
            for pad, *window in zip(values["padding"], *windows, strict=True)
        )
    return values


def _spread(field: str, op: str, axes: str, read: dict[tuple[str, str], tuple[str, Any]]) -> tuple[Any, ...]:
    """Return one value per axis: its own, or that of all axes, or the field's default."""
    letter = _LETTERS[field]
    said = {axis: found for (of, axis), found in read.items() if of == field}
    for axis, (word, _) in said.items():
        if (axis and axis not in axes) or (not axis and set(axes) <= said.keys()):
            raise ValueError(f"problem: {word!r} names an axis that {op} does not have, or that is named already")
    values = []
    for axis in axes:
        _, value = said.get(axis) or said.get("") or ("", _DEFAULTS.get(field))
        if value is None:
            raise ValueError(f"problem: {letter}{axis} is missing from {op}")
        values.append(value)
    return tuple(values)
