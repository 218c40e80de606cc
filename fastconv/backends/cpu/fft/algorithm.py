"""Convolution as a product of Fourier transforms: for kernels so large that every direct way has too much to do."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.fft.work import Work
from fastconv.backends.cpu.work import refuses_all_but, workers_for
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

_OVERHEAD = 30e-6
_UNIT_SECONDS = 60e-6  # calls of NumPy
# Operations a cycle, and bytes a cycle: what NumPy's transforms and complex products reach in double precision.
_TRANSFORM_RATE, _PRODUCT_RATE, _COPY_RATE = 1.0, 2.0, 2.0


class Fft(Algorithm):
    """Overlapping tiles, transformed in double precision, so that rounding stays below that of a plain sum."""

    name = "fft"
    backend = "numba"
    strict = False

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if not problem.ndim:
            return "slides over spatial axes, of which a linear layer has none"
        if problem.dtype == "float64":
            return "transforms in float64, which is too little for results in float64"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return work.workers * work.unit_bytes + (0 if work.problem.prepacked else work.packed_bytes)

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        cycles = work.transforms / _TRANSFORM_RATE + work.products / _PRODUCT_RATE + work.copied / _COPY_RATE
        packing = 0.0 if work.problem.prepacked else work.packing / _TRANSFORM_RATE
        return (
            _OVERHEAD + packing / machine.hertz + (cycles / machine.hertz + work.units * _UNIT_SECONDS) / work.workers
        )

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.fft.run import Runner

        runner = Runner(_work(problem))
        return Plan(problem, self, runner.run, runner.pack)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, workers_for(problem), machine().l2_bytes)
