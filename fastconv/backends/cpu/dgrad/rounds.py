"""How many images an input gradient by a matrix product computes at once."""

from __future__ import annotations

import math

from fastconv.backends.cpu.work import workers_for
from fastconv.machine import machine
from fastconv.problem import ConvProblem

# Of the caches of all workers, how much a product's results may take until they are added up.
_SHARE = 0.5


def images_a_round(problem: ConvProblem) -> int:
    """Return the images of a round: a divisor of all, of which the caches hold what every tap adds to the gradient."""
    image = problem.ic * math.prod(problem.kernel_size) * math.prod(problem.output_size) * problem.itemsize
    most = max(1, int(_SHARE * machine().l2_bytes * workers_for(problem)) // image)
    return max(k for k in range(1, problem.n + 1) if problem.n % k == 0 and k <= most)
