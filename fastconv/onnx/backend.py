"""The interface that ONNX describes for backends: `prepare`, `run_model`, `run_node`, `supports_device`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, namedtupledict
from onnx.reference import ReferenceEvaluator

from fastconv.onnx.evaluator import Evaluator
from fastconv.onnx.operators import ops

# Protobuf takes no message of more, so such a model can be checked as a file only.
LARGEST_MESSAGE = 2**31 - 1


class FastconvRep(BackendRep):  # type: ignore[misc]
    """A model made ready to run, as often as you like. Made by `prepare`.

    Attributes
    ----------
    evaluator : Evaluator
    input_names, output_names : list of str
        Those of the inputs that must be given, and of the outputs.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.input_names: list[str] = evaluator.required
        self.output_names: list[str] = list(evaluator.output_names_)
        self._outputs = namedtupledict("Outputs", self.output_names)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model.

        Parameters
        ----------
        inputs : sequence of arrays, mapping of str to array, or array
            In the order of `input_names` (or of all the graph's inputs, those with initializers included), by name, or
            the only one.

        Returns
        -------
        named tuple
            The outputs; ``outputs[0]`` and ``outputs["name"]`` both work.

        Raises
        ------
        TypeError, ValueError
            If there are too many or too few inputs or unknown names, or what the operators raise.
        """
        if kwargs:
            raise TypeError(f"run: unknown argument {next(iter(kwargs))!r}; options are given to prepare")
        return self._outputs(*self.evaluator.run(None, self._feeds(inputs)))  # type: ignore[no-any-return]

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        every = list(self.evaluator.input_names_)
        if isinstance(inputs, Mapping):
            unknown = [name for name in inputs if name not in every]
            missing = [name for name in self.input_names if name not in inputs]
            if unknown or missing:
                raise ValueError(f"inputs: expected {', '.join(self.input_names)}, got {', '.join(inputs)}")
            return dict(inputs)
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if not isinstance(inputs, Sequence):
            raise TypeError(f"inputs: expected arrays, or a mapping of names to arrays, got {type(inputs).__name__}")
        for names in (self.input_names, every):
            if len(inputs) == len(names):
                return dict(zip(names, inputs, strict=True))
        raise ValueError(f"inputs: expected {len(self.input_names)} ({', '.join(self.input_names)}), got {len(inputs)}")


class FastconvBackend(Backend):  # type: ignore[misc]
    """fastconv as a backend for ONNX models."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Say whether models run on a device: on ``CPU`` alone."""
        return device.partition(":")[0] == "CPU"

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Say whether there is an implementation of every node of a model."""
        try:
            ReferenceEvaluator(model, new_ops=ops())
        except (NotImplementedError, RuntimeError):
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(
        cls, model: onnx.ModelProto | str | bytes, device: str = "CPU", *, fuse: bool = True, **chosen: Any
    ) -> FastconvRep:
        """Make a model ready to run.

        Parameters
        ----------
        model : ModelProto, file name or bytes
        device : str
            ``CPU``.
        fuse : bool
            See `Evaluator`.
        **chosen
            fastconv's `options`: ``threads``, ``backend``, ``max_workspace``, ``deterministic``, ...

        Returns
        -------
        FastconvRep

        Raises
        ------
        ValueError, TypeError
            If the device or an option is none.
        onnx.checker.ValidationError
            If the model is invalid.
        NotImplementedError
            If there is no implementation of a node.
        """
        cls._check_device(device)
        if isinstance(model, bytes):
            model = onnx.load_from_string(model)
        if isinstance(model, str) or model.ByteSize() <= LARGEST_MESSAGE:
            onnx.checker.check_model(model)
        return FastconvRep(Evaluator(model, fuse=fuse, **chosen))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto | str | bytes, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run a model once: ``prepare(model, device, **kwargs).run(inputs)``."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run one node.

        Parameters
        ----------
        node : NodeProto
        inputs : sequence of arrays, or mapping of str to array
            In the order of the node's inputs, without those that are left out.
        device : str
        outputs_info : ignored
        **kwargs
            ``opset_version``, the newest by default, and fastconv's `options`.

        Returns
        -------
        named tuple
        """
        cls._check_device(device)
        version = kwargs.pop("opset_version", None)
        super().run_node(node, inputs, device, **({} if version is None else {"opset_version": version}))
        names = [name for name in node.input if name]
        if not isinstance(inputs, Mapping):
            inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(inputs) != len(names):
                raise ValueError(f"inputs: expected {len(names)} ({', '.join(names)}), got {len(inputs)}")
            inputs = dict(zip(names, inputs, strict=True))
        graph = onnx.GraphProto(name="node", node=[node])
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
        opsets = {"": version or onnx.defs.onnx_opset_version()}
        if node.domain:
            opsets[node.domain] = 1
        evaluator = Evaluator(graph, opsets=opsets, **kwargs)
        outputs = namedtupledict("Outputs", evaluator.output_names_)
        return outputs(*evaluator.run(None, inputs))  # type: ignore[no-any-return]

    @classmethod
    def _check_device(cls, device: str) -> None:
        if not cls.supports_device(device):
            raise ValueError(f"device: fastconv.onnx runs on CPU, not on {device!r}")


prepare = FastconvBackend.prepare
run_model = FastconvBackend.run_model
run_node = FastconvBackend.run_node
supports_device = FastconvBackend.supports_device
is_compatible = FastconvBackend.is_compatible
