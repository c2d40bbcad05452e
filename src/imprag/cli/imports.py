"""Imports of commands that answer: they leave out what only training and compilers need.

A bare ``import torch, transformers`` takes two seconds. Importing a model's class took two more,
most of them for PyTorch's compiler with sympy, for its distributed tensors and for scipy, which
transformers imports wherever they are installed.
"""

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_MARKERS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators that tell the compiler something about a function and leave the function as it is."""

_HIDDEN = "scipy"  # transformers matches boxes with it


own_process = False
"""Whether this process runs one command and nothing else; :func:`imprag.cli.main` sets it."""


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import libraries in less time.

    Garbage collection would take 1.6 s and find nothing, so it waits until the end, and passes
    over what was imported. In a process of its own, transformers is also told that PyTorch has no
    ``torch.distributed`` and that scipy is not installed, and PyTorch's compiler is loaded when it
    is first used.
    """
    gc.disable()
    try:
        if own_process and "transformers" not in sys.modules:
            with _answering_only():
                yield
        else:
            yield
    finally:
        gc.enable()
        gc.freeze()


@contextlib.contextmanager
def _answering_only() -> Iterator[None]:
    import torch.compiler
    import torch.distributed

    if _COMPILER not in sys.modules:
        torch._dynamo = _lazy_compiler()
    hides = _HIDDEN not in sys.modules
    replaced = torch.distributed.is_available, torch.compiler.disable
    torch.distributed.is_available = lambda: False  # transformers asks once
    torch.compiler.disable = _marker
    if hides:
        sys.modules[_HIDDEN] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.distributed.is_available, torch.compiler.disable = replaced
        if hides:
            del sys.modules[_HIDDEN]


def _marker(function: Any = None, *_: Any, **settings: Any) -> Callable[..., Any]:
    """A decorator with or without settings that returns the function."""
    return (lambda later: later) if function is None else function


class _LazyModule(ModuleType):
    """A package whose submodules can be imported, and which is executed when it is first used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _lazy_compiler() -> ModuleType:
    """``torch._dynamo``, in ``sys.modules`` but not executed."""
    spec = importlib.util.find_spec(_COMPILER)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    made.__class__ = _LazyModule
    vars(made).update(dict.fromkeys(_MARKERS, _marker))
    sys.modules[_COMPILER] = made
    return made
