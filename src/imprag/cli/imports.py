"""Imports of commands that answer: they leave out what only training and compilers need.

A bare ``import torch, transformers`` takes two seconds. Importing a model's class took two more,
most of them for PyTorch's compiler with sympy, for its distributed tensors and for scipy, which
transformers imports wherever they are installed.
"""

import contextlib
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_MARKERS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators that tell the compiler something about a function and leave the function as it is."""

_USED = "_trace_wrapped_higher_order_op"
"""The compiler's module that transformers makes masks with; it needs none of the others."""

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
    with contextlib.ExitStack() as stack:
        if _HIDDEN not in sys.modules:
            sys.modules[_HIDDEN] = None  # type: ignore[assignment]
            stack.callback(sys.modules.pop, _HIDDEN)
        stack.enter_context(_replaced(torch.compiler, "disable", _marker))
        stack.enter_context(_replaced(torch.distributed, "is_available", lambda: False))
        from transformers.utils import import_utils

        # The package and its models name one folder in two ways, and each would read all files.
        find = "create_import_structure_from_path"
        models = Path(import_utils.__file__).parent.parent / "models"
        same, structure = {str(models / "__init__.py"): models}, getattr(import_utils, find)
        once = _replaced(import_utils, find, lambda path: structure(same.get(path, path)))
        stack.enter_context(once)
        yield


@contextlib.contextmanager
def _replaced(owner: ModuleType, name: str, function: Callable[..., Any]) -> Iterator[None]:
    own = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, own)


def _marker(function: Any = None, *_: Any, **settings: Any) -> Callable[..., Any]:
    """A decorator with or without settings that returns the function."""
    return (lambda later: later) if function is None else function


class _LazyPackage(ModuleType):
    """A package that is executed when an attribute or a submodule of it is first used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__path__ = self.__spec__.submodule_search_locations or []
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _lazy_compiler() -> ModuleType:
    """``torch._dynamo``, in ``sys.modules`` but not executed."""
    spec = importlib.util.find_spec(_COMPILER)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[_COMPILER] = made
    importlib.import_module(f"{_COMPILER}.{_USED}")
    del made.__path__  # so that importing any other submodule executes the package first
    made.__class__ = _LazyPackage
    vars(made).update(dict.fromkeys(_MARKERS, _marker))
    return made
