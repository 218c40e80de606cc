"""Winograd's convolution F(4x4, 3x3) in single precision: 4 times fewer multiplications, at more rounding.

Sources: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016); Barabasz et al., "Error Analysis
and Improving the Accuracy of Winograd Convolution for Deep Neural Networks" (2020).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from fastconv.algorithm import EPSILON, AnyProblem
from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ACTIVATIONS, Arrays, CudaAlgorithm, Start, Strides
from fastconv.backends.cuda.launching import Kernel
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, Struct, fastdiv
from fastconv.backends.cuda.planes import MAP
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Of kernels/winograd.cu: results of a tile and their products; a block's tiles, outputs, and source channels at a time.
_M, _TAPS, _PRODUCTS = 4, 3, 36
_TILES, _OUTPUTS, _DEPTH = 24, 32, 8
_THREADS = 8 * _PRODUCTS
_WEIGHT_THREADS = 256
_SHARED = _PRODUCTS * _DEPTH * (_OUTPUTS + 4 + _TILES + 4) * 4

# All results of a tile have errors of about the same size, so none may be much smaller than the others.
_FEWEST_PRODUCTS = 12
# What takes the place of `ERROR_CONSTANT`: that of the same points on the CPU.
_CONSTANT = 32.0
# Operations to transform a tile of a source channel; the share of the peak, since every block reads the weights of
# its outputs from the second-level cache. Not measured.
_TRANSFORM, _EFFICIENCY = 440, 0.45
_MOST = 2**31

_WEIGHT = ("weight_output", "weight_input", "weight_row", "weight_column")
_SIZES = (
    *("images", "inputs", "outputs", "padded_inputs", "padded_outputs"),
    *("source_rows", "source_columns", "result_rows", "result_columns", "before_row", "before_column"),
    *("activation", "channels_fastest", "tiles"),
)
_PARAMETERS = Struct(
    ("source", "weight", "result", "bias", "residual", "transformed"),
    {
        **dict.fromkeys(("source_map", "result_map", "residual_map"), MAP),
        **dict.fromkeys((*_WEIGHT, "bias_step"), LONG),
        **dict.fromkeys(_SIZES, INT),
        **dict.fromkeys(("by_output_blocks", "by_tile_rows", "by_tile_columns", "by_padded_outputs"), FASTDIV),
    },
)


class Winograd(CudaAlgorithm):
    """3x3 kernels at stride 1, forward and input gradient: tiles are transformed and multiplied on the chip."""

    name = "winograd4"
    strict: ClassVar[bool] = False

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction not in ("fprop", "dgrad"):
            return "solves convolutions and the gradients of their inputs only"
        if problem.op != "conv2d":
            return f"works on planes, not on {problem.op}"
        if problem.kernel_size != (_TAPS, _TAPS):
            return f"takes {_TAPS}x{_TAPS} kernels, not {problem.kh}x{problem.kw}"
        if problem.stride != (1, 1) or problem.dilation != (1, 1):
            return "takes kernels of stride 1 and dilation 1 only"
        if problem.groups != 1:
            return "takes one group of channels only"
        if problem.padding_mode != "zeros":
            return f"pads with zeros, not in padding_mode {problem.padding_mode!r}"
        if problem.dtype != "float32":
            return f"computes in float32, not on {problem.dtype}"
        if _fewest_products(problem) < _FEWEST_PRODUCTS:
            return f"a result of fewer than {_FEWEST_PRODUCTS} products would have the error of its tile's larger ones"
        if max(_Work(problem).blocks * _TILES, _Work(problem).padded_inputs * _Work(problem).padded_outputs) >= _MOST:
            return "more than 2^31 tiles or pairs of channels"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return 4 * _work(problem).transformed

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        properties = launching.launcher().properties()
        block = 2.0 * _PRODUCTS * _TILES * _OUTPUTS * work.padded_inputs + _TRANSFORM * _TILES * work.padded_inputs
        return properties.seconds(
            flops=work.blocks * block,
            moved=work.problem.bytes + 8 * work.transformed,
            blocks=work.blocks,
            peak=_EFFICIENCY * properties.peak("float32"),
            launches=2,
        )

    def error_bound(self, problem: AnyProblem) -> float:
        return _CONSTANT * EPSILON[problem.accumulator] * math.sqrt(problem.reduction)

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        work, launcher = _work(problem), launching.launcher()
        problem = work.problem
        defines = (("GRADIENT", str(int(work.is_gradient))),)
        transform = launcher.prepare(Kernel("winograd.cu", "winograd_weight", defines), (_WEIGHT_THREADS, 1, 1))
        compute = launcher.prepare(Kernel("winograd.cu", "winograd", defines), (_THREADS, 1, 1), _SHARED)
        names = tuple(o.name for o in problem.inputs + problem.outputs)
        parameters = work.pack(dict(zip(names, strides, strict=True)))
        order = ("dy", "w", "dx", "bias", "residual") if work.is_gradient else ("x", "w", "y", "bias", "residual")
        weight_grid = (-(-work.padded_inputs * work.padded_outputs // _WEIGHT_THREADS),)

        def start(inputs: Arrays, outputs: Arrays) -> None:
            named = dict(zip(names, inputs + outputs, strict=True))
            transformed = launcher.empty(work.transformed, "float32")
            pointers = [*(named.get(name) for name in order), transformed]
            transform(weight_grid, parameters, pointers)
            compute((work.blocks,), parameters, pointers)

        return start


class _Work:
    """A problem as the kernel sees it: an input gradient is a convolution of dy with the weight turned."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        self.is_gradient = problem.direction == "dgrad"
        self.source = problem.output_size if self.is_gradient else problem.input_size
        self.result = problem.input_size if self.is_gradient else problem.output_size
        self.inputs, self.outputs = (problem.oc, problem.ic) if self.is_gradient else (problem.ic, problem.oc)
        self.padded_inputs = -(-self.inputs // _DEPTH) * _DEPTH
        self.padded_outputs = -(-self.outputs // _OUTPUTS) * _OUTPUTS
        self.tiles = -(-self.result[0] // _M), -(-self.result[1] // _M)

    @property
    def transformed(self) -> int:
        """Elements of the transformed weight."""
        return _PRODUCTS * self.padded_inputs * self.padded_outputs

    @property
    def output_blocks(self) -> int:
        return self.padded_outputs // _OUTPUTS

    @property
    def blocks(self) -> int:
        return -(-self.problem.n * math.prod(self.tiles) // _TILES) * self.output_blocks

    def pack(self, named: dict[str, tuple[int, ...]]) -> bytes:
        """Return the kernel's parameters for arrays of some strides."""
        problem = self.problem
        source = named["dy" if self.is_gradient else "x"]
        output, inner, *taps = named["w"]
        across = (inner, output) if self.is_gradient else (output, inner)
        before = [(_TAPS - 1 - pad[0] if self.is_gradient else pad[0]) for pad in problem.padding]
        values: dict[str, Any] = dict(zip(_WEIGHT, (*across, *taps), strict=True))
        return _PARAMETERS.pack(
            **values,
            source_map=source,
            result_map=named["dx" if self.is_gradient else "y"],
            residual_map=named.get("residual", (0, 0, 0, 0)),
            bias_step=named["bias"][0] if "bias" in named else 0,
            images=problem.n,
            inputs=self.inputs,
            outputs=self.outputs,
            padded_inputs=self.padded_inputs,
            padded_outputs=self.padded_outputs,
            source_rows=self.source[0],
            source_columns=self.source[1],
            result_rows=self.result[0],
            result_columns=self.result[1],
            before_row=before[0],
            before_column=before[1],
            activation=ACTIVATIONS[problem.activation],
            channels_fastest=source[1] == 1,
            tiles=problem.n * math.prod(self.tiles),
            by_output_blocks=fastdiv(self.output_blocks),
            by_tile_rows=fastdiv(self.tiles[0]),
            by_tile_columns=fastdiv(self.tiles[1]),
            by_padded_outputs=fastdiv(self.padded_outputs),
        )


def _fewest_products(problem: ConvProblem) -> int:
    """Return how many products that are not with padding are behind a result, at least."""
    products = problem.oc if problem.direction == "dgrad" else problem.ic
    for size, out, padding in zip(problem.input_size, problem.output_size, problem.padding, strict=True):
        if problem.direction == "dgrad":
            # The corner of dx is reached by the tap that its padding leaves.
            products *= max(min(_TAPS, out, 1 + min(padding)), 0)
        else:
            products *= max(min(_TAPS - max(0, *padding), size), 0)
    return products


def _work(problem: AnyProblem) -> _Work:
    assert isinstance(problem, ConvProblem)
    return _Work(problem)
