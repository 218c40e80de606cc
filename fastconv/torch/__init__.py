"""fastconv in PyTorch programs: functions, the one line that sends a program to them, and compiled models.

>>> with fastconv.torch.use():
...     y = model(x)
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastconv.torch needs PyTorch: pip install 'fastconv[torch]'") from error

from fastconv.torch.compiled import compile_model
from fastconv.torch.counting import Stats, stats
from fastconv.torch.functional import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    fold,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
    unfold,
)
from fastconv.torch.kept import forget
from fastconv.torch.routing import use
from fastconv.torch.team import lend as _lend

_lend()

__all__ = [
    "Stats",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "compile_model",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "fold",
    "forget",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "stats",
    "unfold",
    "use",
]
