"""The next step's views are made while the device computes this one."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
_DEPTH = 2  # items that wait to be used
_LONGEST = 10.0  # seconds to wait for the thread's end


class Ahead(Iterator[Item], Generic[Item]):
    """Items of ``make``, in order; on a GPU they are made by a thread on a stream of its own, elsewhere when asked for.

    Args:
        make: the next item, a tensor or nested lists of tensors and None.
        count: how many there are.

    Attributes:
        waited: seconds that the caller has waited for items.
    """

    def __init__(self, make: Callable[[], Item], count: int, device: torch.device):
        self.waited, self._make, self._left, self._device = 0.0, make, count, device
        self._thread: threading.Thread | None = None
        if device.type == "cuda":
            self._made: queue.Queue = queue.Queue(_DEPTH)
            self._closed = threading.Event()
            self._thread = threading.Thread(target=self._work, args=(count,), name="views", daemon=True)
            self._thread.start()

    def _work(self, count: int) -> None:
        torch.cuda.set_device(self._device)
        stream = torch.cuda.Stream(self._device)
        try:
            with torch.cuda.stream(stream):
                for _ in range(count):
                    item = self._make()
                    if not self._put((item, stream.record_event(), None)):
                        return
        except BaseException as error:  # it is the caller's, wherever it came up
            self._put((None, None, error))

    def _put(self, made: tuple) -> bool:
        while not self._closed.is_set():
            try:
                self._made.put(made, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def __next__(self) -> Item:
        if not self._left:
            raise StopIteration
        self._left -= 1
        start = time.perf_counter()
        try:
            if self._thread is None:
                return self._make()
            item, is_made, error = self._made.get()
        finally:
            self.waited += time.perf_counter() - start
        if error is not None:
            raise error
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(is_made)
        _use_on(stream, item)
        return item

    def close(self) -> None:
        """End the thread; nothing may be asked for afterwards."""
        if self._thread is not None:
            self._closed.set()
            self._thread.join(_LONGEST)  # it may wait for a loader that is gone; it is a daemon


def _use_on(stream: torch.cuda.Stream, item: object) -> None:
    """The memory of an item is not reused before the stream is done with it."""
    if isinstance(item, torch.Tensor):
        item.record_stream(stream)
    elif isinstance(item, (list, tuple)):
        for part in item:
            _use_on(stream, part)
