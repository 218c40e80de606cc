"""The gradient of a bias: one sum an entry, at the memory's speed."""

from __future__ import annotations

import math

from fastconv.algorithm import AnyProblem
from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ELEMENTS, Arrays, CudaAlgorithm, Start, Strides
from fastconv.backends.cuda.launching import Kernel
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, LONG_FASTDIV, Struct, array, fastdiv
from fastconv.machine import Machine
from fastconv.problem import DTYPES, ConvProblem

_THREADS, _LANES = 256, 32
# Items that a block has at least, and blocks a multiprocessor that are enough.
_LEAST_ITEMS, _ENOUGH_BLOCKS = 2048, 4

# The struct of kernels/bias_gradient.cu.
PARAMETERS = Struct(
    ("dy", "db", "partial"),
    {
        "dy_image": LONG,
        "dy_channel": LONG,
        "dy_axis": array(LONG, 3),
        "db_channel": LONG,
        "db_axis": array(LONG, 3),
        "items": LONG,
        "results": "<u4",
        "shares": INT,
        "by_channels": FASTDIV,
        "by_positions": array(LONG_FASTDIV, 3),
    },
)


class BiasGradient(CudaAlgorithm):
    """Blocks sum shares of the maps, and shares are summed in order."""

    name = "bias_gradient"
    fallback = True

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction != "bgrad":
            return "solves the gradients of biases only"
        if _results(problem) >= 2**31:
            return "has more than 2^31 biases"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        shares = _shares(problem)
        return 0 if shares == 1 else shares * _results(problem) * DTYPES[problem.accumulator]

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        assert isinstance(problem, ConvProblem)
        properties, shares = launching.launcher().properties(), _shares(problem)
        return properties.seconds(
            flops=problem.flops,
            moved=problem.bytes,
            blocks=_blocks(problem) * shares,
            peak=properties.peak(problem.accumulator),
            resident=8,
            launches=1 + (shares > 1),
        )

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        assert isinstance(problem, ConvProblem)
        dy, db = strides
        shares, results = _shares(problem), _results(problem)
        parameters = PARAMETERS.pack(
            dy_image=dy[0],
            dy_channel=dy[1],
            dy_axis=_three(dy[2:], 0),
            db_channel=db[-1],
            db_axis=_three(db[:-1], 0),
            items=_items(problem),
            results=results,
            shares=shares,
            by_channels=fastdiv(problem.oc),
            by_positions=[fastdiv(size, 64) for size in _three(problem.output_size, 1)],
        )
        wide = _is_wide(problem)
        defines = (
            ("ELEMENT", ELEMENTS[problem.dtype]),
            ("WIDE", str(int(wide))),
            ("BY_POSITION", str(int(problem.bias == "position"))),
        )
        launcher = launching.launcher()
        block = (_THREADS, 1, 1)
        part = launcher.prepare(Kernel("bias_gradient.cu", "bias_gradient", defines), block)
        add = launcher.prepare(Kernel("bias_gradient.cu", "bias_gradient_sum", defines), block) if shares > 1 else None
        blocks = _blocks(problem)

        def start(inputs: Arrays, outputs: Arrays) -> None:
            partial = launcher.empty(shares * results, problem.accumulator) if add else None
            arrays = (inputs[0], outputs[0], partial)
            part((blocks, shares), parameters, arrays)
            if add:
                add((-(-results // _THREADS),), parameters, arrays)

        return start


def _three(values: tuple[int, ...], missing: int) -> tuple[int, ...]:
    return (*(missing,) * (3 - len(values)), *values)


def _results(problem: ConvProblem) -> int:
    return math.prod(problem.bias_shape)


def _items(problem: ConvProblem) -> int:
    """Elements of dy behind one result."""
    return problem.n * (1 if problem.bias == "position" else math.prod(problem.output_size))


def _is_wide(problem: ConvProblem) -> bool:
    """Whether a block takes neighbouring results: where these lie side by side."""
    return problem.bias == "position" or problem.layout == "channels_last" or problem.ndim == 0


def _blocks(problem: ConvProblem) -> int:
    return -(-_results(problem) // (_LANES if _is_wide(problem) else 1))


def _shares(problem: ConvProblem) -> int:
    wanted = -(-_ENOUGH_BLOCKS * launching.launcher().properties().multiprocessors // _blocks(problem))
    return max(1, min(wanted, _items(problem) // _LEAST_ITEMS))
