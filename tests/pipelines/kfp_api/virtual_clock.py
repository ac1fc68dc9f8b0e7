"""A clock that advances only while every actor sleeps: minutes pass at once, and no machine is too slow."""

import heapq
import itertools
import threading
from collections.abc import Callable


class Clock:
    """Seconds that pass for the threads started by `spawn`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._awake = 0
        self._sleeping: list[tuple[float, int, threading.Event]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        woken = threading.Event()
        with self._lock:
            heapq.heappush(self._sleeping, (self.now + max(seconds, 0.0), next(self._order), woken))
            self._awake -= 1
            self._go_on()
        woken.wait()

    def _go_on(self) -> None:
        if self._awake == 0 and self._sleeping:
            self.now, _, woken = heapq.heappop(self._sleeping)
            self._awake += 1
            woken.set()

    def spawn(self, work: Callable[[], None]) -> None:
        """Starts an actor, which is awake from now on."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self.failures.append(error)
            finally:
                with self._lock:
                    self._awake -= 1
                    self._go_on()

        with self._lock:
            self._awake += 1
            thread = threading.Thread(target=run, daemon=True)
            self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Waits until every actor has ended, also those that other actors started."""
        for thread in self._threads:  # it grows during the loop
            thread.join(60)
            assert not thread.is_alive()
        if self.failures:
            raise self.failures[0]
