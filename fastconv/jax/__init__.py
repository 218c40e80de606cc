"""fastconv for JAX programs: its ops on JAX arrays, under `jax.jit`, `jax.grad`, `jax.jvp` and `jax.vmap`, on the CPU.

The functions are those of `fastconv`, with the same arguments (but ``out``), and those of `jax.lax`
(`conv_general_dilated`, `conv`, `conv_with_general_padding`, `conv_transpose`, `reduce_window`) with JAX's. `use`
sends a program to them that calls `jax.lax`.

Derivatives are of either mode and any order. The `fastconv.options` in force where a function is traced are those that
it runs with. Calls go through XLA's foreign function interface, without a copy; where a jaxlib has one of another
version, through `jax.experimental.buffer_callback`, with a warning. Each takes the interpreter's lock for some
microseconds. When a program ends, its side effects and the arrays that it still has are waited for (these for 30 s at
most), and what else is under way is cancelled.
"""

try:
    import jax  # noqa: F401
except ImportError:
    raise ImportError("fastconv.jax needs JAX: pip install 'fastconv[jax]'") from None

from fastconv.jax import batching, derivatives  # noqa: F401  the primitive's rules
from fastconv.jax.lax import (
    conv,
    conv_general_dilated,
    conv_transpose,
    conv_with_general_padding,
    reduce_window,
)
from fastconv.jax.ops import (
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
    linear,
    locally_connected2d,
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
from fastconv.jax.program import stats, use

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_general_dilated",
    "conv_transpose",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_with_general_padding",
    "fold",
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
    "reduce_window",
    "stats",
    "unfold",
    "use",
]
