"""What fastconv's operators for ONNX's reference evaluator have in common."""

from __future__ import annotations

from typing import Any

from onnx.reference.op_run import OpRun

from fastconv import ops, pooling

AXES = (1, 2, 3)
CONV = {n: getattr(ops, f"conv{n}d") for n in AXES}
CONV_TRANSPOSE = {n: getattr(ops, f"conv_transpose{n}d") for n in AXES}
MAX_POOL = {n: getattr(pooling, f"max_pool{n}d") for n in AXES}
AVG_POOL = {n: getattr(pooling, f"avg_pool{n}d") for n in AXES}
LP_POOL = {n: getattr(pooling, f"lp_pool{n}d") for n in AXES}
GLOBAL_AVG_POOL = {n: getattr(pooling, f"adaptive_avg_pool{n}d") for n in AXES}
GLOBAL_MAX_POOL = {n: getattr(pooling, f"adaptive_max_pool{n}d") for n in AXES}


class Op(OpRun):  # type: ignore[misc]
    """An operator of the main domain. What it raises names the node."""

    op_domain = ""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().run(*args, **kwargs)
        except (TypeError, ValueError) as error:
            # The base class wraps a TypeError in one that tells less.
            told = error.__cause__ if isinstance(error.__cause__, TypeError) else error
            told.add_note(f"in the {self.op_type} node {self.onnx_node.name!r} that makes {', '.join(self.output)}")
            raise told from told.__cause__
