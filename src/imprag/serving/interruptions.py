"""Long passes of the engine's thread make room between two layers."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from torch import nn

_LEAST = 0.25  # seconds that a pass runs before it is interrupted


class Interruptions:
    """Interrupts the passes of a thread, so that at least half of the time is the passes' own.

    Args:
        layers: the model's.
        work: called before a layer once a pass has run for a while. It may run the model, and ends
            the pass by an exception.
    """

    def __init__(self, layers: Iterable[nn.Module], work: Callable[[], None]) -> None:
        self._layers = list(layers)
        self._work = work
        self._thread = 0
        self._ended = self._took = 0.0  # of the last undisturbed work
        self._undisturbed = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Interrupt the passes of the thread that enters this context."""
        self._thread = threading.get_ident()
        hooks = [layer.register_forward_pre_hook(self._before_layer) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def undisturbed(self, work: Callable[[], None]) -> None:
        """Run something that is not interrupted itself."""
        began = time.perf_counter()
        self._undisturbed = True
        try:
            work()
        finally:
            self._undisturbed = False
            self._ended = time.perf_counter()
            self._took = self._ended - began

    def _before_layer(self, *layer_and_input: object) -> None:
        if threading.get_ident() != self._thread or self._undisturbed:
            return
        if time.perf_counter() - self._ended > max(_LEAST, self._took):
            self.undisturbed(self._work)
