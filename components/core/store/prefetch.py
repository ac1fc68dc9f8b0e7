"""Work on the next items in threads while the first are used."""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(work: Callable[[Item], Result], items: Iterable[Item], depth: int = 4) -> Generator[tuple[Item, Result]]:
    """Each item with its result, in order, while the next `depth` are worked on in threads."""
    with ThreadPoolExecutor(depth) as pool:
        waiting: collections.deque[tuple[Item, Future[Result]]] = collections.deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > depth:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
