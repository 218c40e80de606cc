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
  ``ceil``, ``exclude_pad``, ``indices``, ``div3`` (a divisor), ``norm2`` (an exponent).
"""

from __future__ import annotations

import re
from typing import Any

from fastconv.problem import ACTIVATIONS, AXES, PADDING_MODES, ConvProblem, PoolProblem, Problem

_DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16"}
_DTYPE_WORDS = {v: k for k, v in _DTYPES.items()}
_WORD = re.compile(r"([a-z]+?)(-?\d[\d.:e+-]*|same)$")
_PER_AXIS = {"i": "input_size", "k": "kernel_size", "o": "output_size", "s": "stride", "d": "dilation", "p": "padding"}
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
}


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding for an output of ``ceil(size / stride)``, the odd one after the input (TensorFlow's split)."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def format_problem(problem: Problem) -> str:
    """Return the canonical text of a problem; `parse_problem` gives the problem back."""
    axes = AXES[len(AXES) - problem.ndim :]
    conv = isinstance(problem, ConvProblem)
    words = [f"{problem.op}:{problem.direction}", f"n{problem.n}"]
    if isinstance(problem, ConvProblem):
        words += [f"ic{problem.ic}"]
    elif isinstance(problem, PoolProblem):
        words += [f"c{problem.c}"]
    words += [f"i{a}{v}" for a, v in zip(axes, problem.input_size, strict=True)]
    if isinstance(problem, ConvProblem):
        words += [f"oc{problem.oc}"]
    if conv or not getattr(problem, "given_output", False):
        words += [f"k{a}{v}" for a, v in zip(axes, problem.kernel_size, strict=True)]
    else:
        words += [f"o{a}{v}" for a, v in zip(axes, problem.output_size, strict=True)]
    for letter, values, default in (
        ("s", problem.stride, None if _stride_follows_kernel(problem.op) else 1),
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


def _stride_follows_kernel(op: str) -> bool:
    """Whether a missing stride means the kernel's size, as in PyTorch's pools."""
    return "pool" in op and not op.startswith(("adaptive", "max_unpool"))


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
    direction = direction or "fprop"
    match = re.fullmatch(r"(linear)|(?:conv|locally_connected|\w*pool)([123])d|(unfold)", op)
    if not match:
        raise ValueError(
            f"problem: unknown op {op!r}; expected conv1d, conv2d, conv3d, locally_connected2d, linear, unfold "
            "or a pool such as max_pool2d"
        )
    ndim = 0 if match[1] else int(match[2] or 0)
    values: dict[str, Any] = {}
    sizes: dict[str, dict[str, Any]] = {}
    for word in words:
        _read_word(word, values, sizes)
    if match[3]:
        ndim = max((len(AXES) - AXES.index(a) for named in sizes.values() for a in named if a), default=2)
    return _build(op, direction, AXES[len(AXES) - ndim :], values, sizes)


def _read_word(word: str, values: dict[str, Any], sizes: dict[str, dict[str, Any]]) -> None:
    if word in _FLAGS:
        name, value = _FLAGS[word]
        values[name] = value
        return
    match = _WORD.match(word)
    if match is None:
        raise ValueError(
            f"problem: cannot read {word!r}; expected a name and a number such as 'ih56', or a flag such as 'bias'"
        )
    name, number = match.groups()
    integers = {"n": "n", "c": "c", "ic": "c", "oc": "oc", "g": "groups", "div": "divisor_override"}
    try:
        if name in integers:
            values[integers[name]] = int(number)
        elif name == "norm":
            values["norm_type"] = float(number)
        elif name[0] in _PER_AXIS and name[1:] in ("", *AXES):
            read = _padding if name[0] == "p" else int
            sizes.setdefault(_PER_AXIS[name[0]], {})[name[1:]] = read(number)
        else:
            raise ValueError
    except ValueError:
        raise ValueError(f"problem: cannot read {word!r}") from None


def _padding(number: str) -> Any:
    if number == "same":
        return number
    before, _, after = number.partition(":")
    return int(before), int(after or before)


def _build(
    op: str, direction: str, axes: str, values: dict[str, Any], sizes: dict[str, dict[str, Any]]
) -> ConvProblem | PoolProblem:
    for field, named in sizes.items():
        if unknown := set(named) - {"", *axes}:
            letter = next(k for k, v in _PER_AXIS.items() if v == field)
            raise ValueError(f"problem: {letter}{min(unknown)} names an axis that {op} does not have")
    pool = "pool" in op or op == "unfold"
    given = op.startswith(("adaptive", "max_unpool"))

    def read(field: str) -> tuple[Any, ...]:
        named = sizes.get(field, {})
        result = []
        for axis in axes:
            value = named.get(axis, named.get("", _DEFAULTS.get(field)))
            if value is None and given and field == "kernel_size":
                value = 1
            if value is None:
                letter = next(k for k, v in _PER_AXIS.items() if v == field)
                raise ValueError(f"problem: {letter}{axis} is missing from {op}")
            result.append(value)
        return tuple(result)

    values.setdefault("n", 1)
    fields = {name: read(name) for name in ("input_size", "kernel_size", "stride", "dilation", "padding")}
    if "stride" not in sizes and _stride_follows_kernel(op):
        fields["stride"] = fields["kernel_size"]
    fields["padding"] = tuple(
        same_padding(i, k, s, d) if p == "same" else p
        for i, k, s, d, p in zip(
            *(fields[f] for f in ("input_size", "kernel_size", "stride", "dilation", "padding")), strict=True
        )
    )
    if not pool:
        if "c" not in values or "oc" not in values:
            raise ValueError(f"problem: {'ic' if 'c' not in values else 'oc'} is missing from {op}")
        values["ic"] = values.pop("c")
    elif given:
        fields["output_size"] = read("output_size")
    try:
        kind: Any = PoolProblem if pool else ConvProblem
        problem: ConvProblem | PoolProblem = kind(op=op, direction=direction, **fields, **values)
        return problem
    except TypeError as error:
        raise ValueError(f"problem: {op} takes no {str(error).rsplit(' ', 1)[-1]}") from None
