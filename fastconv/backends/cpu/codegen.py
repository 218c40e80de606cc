"""How LLVM makes kernels out of Numba's code: as a whole, once.

Numba optimises each function, then all it calls with it, lightly and then fully, and makes machine code of it, for it
might be called from anywhere. A function that stands in a kernel, called by none but the kernel, would go through all
of this for nothing; and through it again as part of the kernel. Here only what is called by its address is optimised
and made machine code of.

Numba also works out anew what type each sum or comparison of two numbers has, by trying what NumPy could make of it.
Here it does so once for the same types.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba import types
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target


class _Library(JITCodeLibrary):
    """The code of a function, optimised when machine code is asked for."""

    _is_generated = False

    def add_llvm_module(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout
        self._final_module.link_in(module)

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            if hasattr(library, "_reload_init"):  # from Numba 0.63 on
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def _optimize_final_module(self) -> None:
        passes = self._codegen._module_pass_manager()
        if isinstance(passes, tuple):  # from Numba 0.62 on, with their builder
            passes[0].run(self._final_module, passes[1])
        else:
            passes.run(self._final_module)

    def _finalize_final_module(self) -> None:
        super()._finalize_final_module()
        self._is_generated = True

    def _generate(self) -> None:
        self._ensure_finalized()
        if not self._is_generated:
            self._optimize_final_module()
            self._finalize_final_module()

    @property
    def has_dynamic_globals(self) -> bool:
        """Numba asks this before it keeps machine code on disk."""
        self._generate()
        return bool(super().has_dynamic_globals)

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        if not self._is_generated and all(function.name != name for function in self.get_defined_functions()):
            return 0
        self._generate()
        return int(super().get_pointer_to_function(name))


class _Codegen(JITCPUCodegen):
    """Numba's own, with the same engine, but for its libraries."""

    _library_class = _Library

    def __init__(self, numbas: Any) -> None:
        self.__dict__.update(numbas.__dict__)

    def set_env(self, env_name: str, env: Any) -> None:
        """Tell a function of Python's objects, of which kernels have none; one that is no machine code has no place."""
        if self._engine.get_global_value_address(env_name):
            super().set_env(env_name, env)


_resolve = types.Function.get_call_type
_NUMBERS = (types.Number, types.IntegerLiteral, types.Boolean)
_signatures: dict[tuple[Any, ...], Any] = {}


def _remembered(function: Any, context: Any, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
    """Return the signature of a call: an operator's, of numbers, from memory."""
    is_operator = getattr(function.typing_key, "__module__", None) == "_operator"
    if kws or not is_operator or not all(isinstance(a, _NUMBERS) for a in args):
        return _resolve(function, context, args, kws)
    key = (function, *args)
    if key not in _signatures:
        _signatures[key] = _resolve(function, context, args, kws)
    return _signatures[key]


@contextmanager
def whole() -> Iterator[None]:
    """Compile each kernel as a whole, and collect no garbage meanwhile: hardly any of so many objects would be it."""
    context = cpu_target.target_context
    with global_compiler_lock:
        numbas, collects = context._internal_codegen, gc.isenabled()
        inherits = "get_call_type" not in vars(types.Function)
        context._internal_codegen = _Codegen(numbas)
        types.Function.get_call_type = _remembered
        gc.disable()
        try:
            yield
        finally:
            context._internal_codegen = numbas
            if inherits:
                del types.Function.get_call_type
            if collects:
                gc.enable()


# A child forked while another thread compiles would never have the lock, nor its garbage collector, again.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
