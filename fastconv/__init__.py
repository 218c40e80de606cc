"""fastconv: convolution, pooling and their gradients on arrays, by the fastest algorithm for each shape."""

from fastconv import grad, nn, testing
from fastconv._version import __version__
from fastconv.algorithm import Algorithm, Plan
from fastconv.choice import autotune, available_backends, explain, plan, tune, warmup
from fastconv.columns import fold, unfold
from fastconv.dispatch import NoAlgorithmError
from fastconv.grad import vjp
from fastconv.ops import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    linear,
    locally_connected2d,
)
from fastconv.options import options
from fastconv.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.registry import register

__all__ = [
    "Algorithm",
    "ConvProblem",
    "NoAlgorithmError",
    "Plan",
    "PoolProblem",
    "__version__",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "autotune",
    "available_backends",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "explain",
    "fold",
    "grad",
    "linear",
    "locally_connected2d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "nn",
    "options",
    "plan",
    "register",
    "testing",
    "tune",
    "unfold",
    "vjp",
    "warmup",
]
