"""Choice, and control of it: `plan`, `explain`, `tune`, `autotune`, `warmup`, `available_backends`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np

from fastconv import arrays, dispatch, registry, repeat, testing
from fastconv.algorithm import AnyProblem, Plan
from fastconv.arrays import Array
from fastconv.backends.cuda import device
from fastconv.call import Call, execute, lies_over, lowering_of
from fastconv.lowering import call_options
from fastconv.notation import format_problem, parse_problem
from fastconv.options import Options, options
from fastconv.problem import ConvProblem, PoolProblem

Subject: TypeAlias = "Callable[..., Array] | AnyProblem | str"


def _check_tied(name: str, array: Any, used: Any) -> None:
    """Check that a plan works on an array itself, in whatever shape, and not on a copy."""
    if array.size and not arrays.may_overlap(array, used):
        raise ValueError(
            f"{name}: its elements, of shape {array.shape} and strides {array.strides}, cannot be seen in the shape "
            f"{used.shape} without a copy"
        )


class BoundPlan:
    """An op with its algorithm chosen once and its weights packed: ``plan(x)`` runs. Made by `plan`; picklable.

    Attributes
    ----------
    problem : ConvProblem or PoolProblem
    algorithm : str
        ``backend/name`` of the chosen algorithm.
    """

    def __init__(self, call: Call) -> None:
        names = [operand.name for operand in call.problem.inputs]
        if call.problem.n and "w" in names:
            call = call.with_problem(prepacked=True)
        # The first array is the one that changes from run to run: only what it is like is kept.
        self._first, *_ = call.inputs
        self._call = call.with_inputs({**call.inputs, self._first: None})
        self._prepare()

    def _prepare(self) -> None:
        call = self._call
        self.problem = call.problem
        self.algorithm = "none: the batch is empty"
        self._inputs = call.inputs
        self._plan: Plan | None = None
        if call.problem.n:
            self._plan = dispatch.plan_for(call.problem, call.options, call.kind.gpu)
            self.algorithm = self._plan.algorithm.key
            packed = self._plan.packed(tuple(call.inputs.values()))
            self._inputs = dict(zip(call.inputs, packed, strict=True))
        plain = self._plan is not None and call.kind is arrays.NUMPY and call.shape == self.problem.outputs[0].shape
        # The shape of an input whose outputs are what the caller gets; None if nothing is so simple.
        self._plain_shape = self.problem.inputs[0].shape if plain else None
        self._run: Any = self._plan.run if self._plan is not None else None
        self._outputs = repeat.new_outputs(self.problem)
        self._dtype = arrays.dtype_named(self.problem.dtype)
        self._rest = tuple(self._inputs.values())[1:]

    def __call__(self, input: Array, *, residual: Array | None = None, out: Array | None = None) -> Array:
        """Run the plan.

        Parameters
        ----------
        input : array
            Of the kind, shape and dtype that the plan was made for. (For `grad.conv2d_input`: grad_output.)
        residual : array, optional
            In place of the one that the plan was made with.
        out : array, optional
            Where the result is written.

        Returns
        -------
        array
            What the op returns.

        Raises
        ------
        TypeError, ValueError
            If an array is not like the one that the plan was made with.
        """
        # An array that is just what the algorithm takes: every step counts on small ones.
        if (
            type(input) is np.ndarray and out is None
            and input.shape == self._plain_shape and input.dtype == self._dtype
        ):  # fmt: skip
            rest = self._rest if residual is None else self._rest_with(residual)
            if rest is not None:
                outputs = self._outputs(input)
                self._run((input, *rest), outputs)
                return outputs[0] if len(outputs) == 1 else outputs
        given = {self._first: input}
        if residual is not None:
            if "residual" not in self._inputs:
                raise ValueError("residual: the plan was made without one")
            given["residual"] = residual
        inputs = dict(self._inputs)
        for name, value in given.items():
            inputs[name] = self._read(name, value)
        call = self._call.with_inputs(inputs, out=out)
        return call.finish(call.compute(self._plan))

    def bind(self, input: Array, *, out: Array, residual: Array | None = None) -> Callable[[], object]:
        """Tie the plan to arrays, so that nothing is read or checked when it runs.

        Parameters
        ----------
        input : array
            As in a call.
        out : array of the output's shape and dtype
            Where the result is written. It must not lie over an input.
        residual : array, optional
            In place of the one that the plan was made with.

        Returns
        -------
        callable
            Takes no arguments: it computes from what the arrays hold by then.

        Raises
        ------
        TypeError, ValueError
            If an array is not like the one that the plan was made with, ``out`` lies over an input, or an array's
            elements lie so that the plan would work on a copy.

        Examples
        --------
        >>> run = plan.bind(x, out=y)
        >>> x[...] = image
        >>> run()
        """
        if residual is not None and "residual" not in self._inputs:
            raise ValueError("residual: the plan was made without one")
        inputs = {**self._inputs, self._first: self._read(self._first, input)}
        if residual is not None:
            inputs["residual"] = self._read("residual", residual)
        target = arrays.read("out", out)[0]
        if any(lies_over(target, array) for array in inputs.values()):
            raise ValueError("out: lies over an input")
        call = self._call.with_inputs(inputs, out=out)
        outputs = call.outputs()
        _check_tied("out", target, outputs[0])
        _check_tied(self._first, arrays.read(self._first, input)[0], inputs[self._first])
        if residual is not None:
            _check_tied("residual", arrays.read("residual", residual)[0], inputs["residual"])
        if self._plan is None:
            return partial(call.compute, self._plan)
        return partial(self._plan.run, tuple(inputs.values()), outputs)

    @property
    def plain(self) -> bool:
        """Whether `into` may be called: one NumPy array comes in, one of the problem's own shape comes out."""
        return self._plain_shape is not None and len(self.problem.outputs) == 1

    def into(self, out: Any, input: Any, residual: Any = None) -> None:
        """Run a `plain` plan without looking at anything, for whoever knows that the arrays are right.

        They must be NumPy arrays of just the shapes, dtypes and strides that the plan was made for and that its call
        returns; ``residual`` is None if the plan has none.
        """
        rest = self._rest if residual is None else (*self._rest[:-1], residual)
        self._run((input, *rest), (out,))

    def _rest_with(self, residual: Any) -> tuple[Any, ...] | None:
        """Return the inputs after the first with another residual, if that is an array such as the algorithm takes."""
        like = self._inputs.get("residual")
        if like is None or type(residual) is not np.ndarray:
            return None
        same = residual.shape == like.shape and residual.dtype == self._dtype
        return (*self._rest[:-1], residual) if same else None

    def _read(self, name: str, value: Any) -> Any:
        array = arrays.read_as(name, value, self._call.kind, "the plan's")
        shape = self._call.shapes[name]
        if array.shape != shape:
            raise ValueError(f"{name}: the plan is for shape {shape}, got {array.shape}")
        arrays.check_dtype(name, array, self.problem.dtype)
        index = list(self._call.inputs).index(name)
        return array.reshape(self.problem.inputs[index].shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"first": self._first, "call": self._call}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._first, self._call = state["first"], state["call"]
        self._prepare()

    def __repr__(self) -> str:
        return f"<plan of {format_problem(self.problem)} by {self.algorithm}>"


def plan(function: Callable[..., Array], *args: Any, **kwargs: Any) -> BoundPlan:
    """Choose an algorithm for an op and pack its weights, once.

    Parameters
    ----------
    function : one of fastconv's ops
    *args, **kwargs
        What the op takes. The first array serves as an example of what ``plan(x)`` will get; the others (weight,
        bias, ...) are kept and must not be changed afterwards.

    Returns
    -------
    BoundPlan

    Raises
    ------
    TypeError, ValueError
        What the op raises; also if ``out`` is given (give it to the plan's call instead).

    Examples
    --------
    >>> plan = fastconv.plan(fastconv.conv2d, x, w, b, stride=2)
    >>> y = plan(x)
    """
    if kwargs.get("out") is not None:
        raise ValueError("out: give it when the plan is run: plan(x, out=y)")
    return BoundPlan(lowering_of(function)(*args, **kwargs))


def explain(subject: Subject, *args: Any, **kwargs: Any) -> dispatch.Choice:
    """Tell which algorithm an op would run, and why.

    Parameters
    ----------
    subject : one of fastconv's ops, a problem, or a problem's text form
    *args, **kwargs
        What the op takes; with a problem, ``backend`` and ``algorithm``.

    Returns
    -------
    Choice
        Data that prints as a table: every algorithm, why it was refused, its predicted and measured time, its
        workspace and error bound, and the winner.

    Raises
    ------
    TypeError, ValueError
        What the op raises, or a text that cannot be read.
    """
    return dispatch.survey(*_problem(subject, args, kwargs))


def tune(subject: Subject, *args: Any, force: bool = False, **kwargs: Any) -> dispatch.Choice:
    """Measure every algorithm that may solve a problem, and remember the times for this machine.

    A convolution is measured twice: as its function runs it, and with its weight packed, as `plan` does.
    Each is compared with the reference first; one whose result is off never wins. Algorithms predicted to be
    hopelessly slow are left unmeasured. The times stay in the user's cache directory (see `fastconv info`).

    Parameters
    ----------
    subject, *args, **kwargs
        As in `explain`.
    force : bool
        Measure again what is known already, and try again what was wrong or failed.

    Returns
    -------
    Choice
        As `explain` returns it now.

    Raises
    ------
    TypeError, ValueError
        What `explain` raises; also if the problem is too large for this machine's memory.
    """
    return dispatch.tune(*_problem(subject, args, kwargs), force=force)


def autotune() -> AbstractContextManager[Options]:
    """Within this context, `tune` every problem when it is first met: ``with fastconv.autotune(): ...``."""
    return options(autotune=True)


def warmup(
    subject: Subject | Iterable[Subject], *args: Any, progress: Callable[[str], None] | None = None, **kwargs: Any
) -> None:
    """Run problems once on random data, so that kernels are compiled and plans made before they are needed.

    For a problem on a GPU, the current one, nothing runs: its plan compiles the kernels.

    Parameters
    ----------
    subject, *args, **kwargs
        As in `explain`; or several subjects, which all take the same arguments.
    progress : callable, optional
        Called with each problem's text before it runs.

    Raises
    ------
    TypeError, ValueError
        What `explain` raises; also if no algorithm solves the problem, or if it is too large for this machine's
        memory.
    """
    several = isinstance(subject, Iterable) and not isinstance(subject, str)
    for one in cast("Iterable[Subject]", subject) if several else [subject]:
        problem, chosen = _problem(one, args, kwargs)
        if progress is not None:
            progress(format_problem(problem))
        if problem.n:
            plan = dispatch.plan_for(problem, chosen)
            if problem.device == "cpu":  # kernels for a GPU are compiled by now
                execute(problem, plan.packed(testing.random_inputs(problem)), chosen, plan=plan)


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that have algorithms registered, and the device for them."""
    devices = {"cpu"} if device.missing() else {"cpu", "cuda"}
    return tuple(dict.fromkeys(a.backend for a in registry.algorithms() if a.device in devices))


def _problem(subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[AnyProblem, Options]:
    if isinstance(subject, str | ConvProblem | PoolProblem):
        if args or kwargs.keys() - {"backend", "algorithm"}:
            raise TypeError(f"subject: a problem takes backend and algorithm alone, got {args} and {kwargs}")
        problem = parse_problem(subject) if isinstance(subject, str) else subject
        return problem, call_options(kwargs.get("backend"), kwargs.get("algorithm"))
    call = lowering_of(subject)(*args, **kwargs)
    return call.problem, call.options
