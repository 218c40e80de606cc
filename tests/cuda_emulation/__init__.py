"""Runs the CUDA kernels without a GPU: each compiled as plain C++, its threads as fibres, guarded by AddressSanitizer.

`Emulator` takes the place of the launcher that talks to CuPy, so that whole algorithms run on NumPy arrays:

    with emulated():
        testing.check_problem(registry.find("cuda/direct"), problem)
"""

from cuda_emulation import fake_cupy
from cuda_emulation.emulator import ORDERS, EmulationError, Emulator, Program, build, emulated

__all__ = ["ORDERS", "EmulationError", "Emulator", "Program", "build", "emulated", "fake_cupy"]
