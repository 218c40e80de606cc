"""`Evaluator`: ONNX's reference evaluator, with fastconv's operators, on a graph made ready for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx.inliner
from onnx.reference import ReferenceEvaluator

from fastconv.onnx import fusion
from fastconv.onnx.corrected import corrected
from fastconv.onnx.operators import ops
from fastconv.onnx.packed import freeze
from fastconv.options import options


class Evaluator(ReferenceEvaluator):  # type: ignore[misc]
    """Runs a model with fastconv's convolutions and pools; whatever else is in it, ONNX's reference evaluator runs.

    Constants are computed and weights packed once. Neighbouring nodes are computed together where nothing else sees
    what goes between them: a convolution with the normalisation, addition and activation that follow it.

    Parameters
    ----------
    proto : ModelProto, FunctionProto, GraphProto, NodeProto, str or bytes
        As `onnx.reference.ReferenceEvaluator` takes it.
    opsets, functions, verbose, new_ops
        As there; ``new_ops`` stand above fastconv's.
    fuse : bool
        Whether a model is made ready as above. If not, it runs node by node, as it does anyway when the caller gives
        another value to an initializer or asks for intermediate results.
    **chosen
        fastconv's `options`, in force whenever the model runs: ``threads``, ``backend``, ``max_workspace``, ...

    Examples
    --------
    >>> session = fastconv.onnx.Evaluator("resnet50.onnx", threads=2)
    >>> (y,) = session.run(None, {"x": x})
    """

    rt_nodes_: list[Any]

    def __init__(
        self,
        proto: Any,
        opsets: Mapping[str, int] | None = None,
        functions: Any = None,
        verbose: int = 0,
        new_ops: Any = None,
        *,
        fuse: bool = True,
        **chosen: Any,
    ) -> None:
        with options(**chosen):  # refuses what is no option, before a large model is read
            pass
        if isinstance(proto, str):
            proto = onnx.load(proto)
        elif isinstance(proto, bytes):
            proto = onnx.load_from_string(proto)
        if isinstance(proto, onnx.ModelProto) and proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        self._chosen = chosen
        self._given_ops = list(new_ops or [])
        self._fuses = fuse and isinstance(proto, onnx.ModelProto)
        super().__init__(proto, opsets=opsets, functions=functions, verbose=verbose, new_ops=[*self._given_ops, *ops()])

    def _init(self) -> None:
        super()._init()
        for value in self.rt_inits_.values():
            freeze(value)
        self._initializers = frozenset(self.rt_inits_)
        self._plain: Evaluator | None = None
        if self._fuses:
            with options(**self._chosen):
                nodes = fusion.fold(self.rt_nodes_, self.rt_inits_)
                self.rt_nodes_ = fusion.fuse(nodes, self.rt_inits_, self.output_names_)
        self._last_uses = self._find_last_uses()

    def _load_impl(self, node: Any, input_types: Any = None) -> Any:
        if node.domain == "" and ("", node.op_type) not in self.new_ops_ and "" in self.opsets_:
            made = corrected(node, self.opsets_[""])
            if made is not None:
                return made
        return super()._load_impl(node, input_types)

    def _find_last_uses(self) -> list[list[str]]:
        """Return, for every step, the results that nobody needs after it."""
        kept = {*self.output_names_, *self.rt_inits_, ""}
        seen: set[str] = set(kept)
        last: list[list[str]] = []
        for step in reversed(self.rt_nodes_):
            names = {*step.input, *step.output}
            if step.need_context():
                names |= fusion.outside_names(step)
            last.append(sorted(names - seen))
            seen |= names
        return last[::-1]

    @property
    def steps(self) -> list[str]:
        """What is computed one after another: the types of the nodes, joined by + where one step computes several."""
        return [step.op_type for step in self.rt_nodes_]

    @property
    def required(self) -> list[str]:
        """The names of the inputs that have no initializer."""
        return [name for name in self.input_names_ if name not in self._initializers]

    def run(
        self,
        output_names: Any,
        feed_inputs: Mapping[str, Any],
        attributes: dict[str, Any] | None = None,
        intermediate: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the model.

        Parameters
        ----------
        output_names : list of str or None
            None for all outputs of the graph.
        feed_inputs : mapping of str to array
        attributes, intermediate, **kwargs
            As `onnx.reference.ReferenceEvaluator.run` takes them.

        Returns
        -------
        list of array, or a dictionary of all results if ``intermediate``

        Raises
        ------
        TypeError, ValueError
            What fastconv's functions raise, with a note that names the node.
        RuntimeError
            If an input is missing.
        """
        if intermediate:
            kwargs["intermediate"] = True
        with options(**self._chosen):
            if not self._fuses or kwargs or self.verbose:
                return self._base_run(output_names, feed_inputs, attributes, kwargs)
            if not self._initializers.isdisjoint(feed_inputs) or not set(output_names or ()) <= set(self.output_names_):
                return self._node_by_node().run(output_names, feed_inputs)
            return self._run_steps(output_names, feed_inputs)

    def _base_run(self, output_names: Any, feeds: Any, attributes: Any, kwargs: dict[str, Any]) -> Any:
        """Run as the base class does: node by node for whoever wants to look at what it does."""
        plain = self if not self._fuses else self._node_by_node()
        return ReferenceEvaluator.run(plain, output_names, feeds, attributes, **kwargs)

    def _node_by_node(self) -> Evaluator:
        if self._plain is None:
            self._plain = Evaluator(
                self.proto_, verbose=self.verbose, new_ops=self._given_ops, fuse=False, **self._chosen
            )
        return self._plain

    def _run_steps(self, output_names: Any, feeds: Mapping[str, Any]) -> list[Any]:
        missing = [name for name in self.required if name not in feeds]
        if missing:
            raise RuntimeError(f"inputs: {', '.join(missing)} missing; got {', '.join(feeds) or 'none'}")
        results = {"": None, **self.rt_inits_, **feeds}
        for step, done in zip(self.rt_nodes_, self._last_uses, strict=True):
            inputs = [results[name] for name in step.input]
            made = step.run(*inputs, context=results) if step.need_context() else step.run(*inputs)
            # An output without a name is not wanted; an input without one is absent, whatever came before.
            results.update((name, value) for name, value in zip(step.output, made, strict=False) if name)
            for name in done:  # memory, and caches
                results.pop(name, None)
            del inputs, made
        return [results[name] for name in output_names or self.output_names_]
