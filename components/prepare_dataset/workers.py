"""The processes that prepare chunks."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.runtime import quiet_libraries
from qlora_pipelines.components.prepare_dataset.encoding import Encoder
from qlora_pipelines.components.prepare_dataset.preparing import Chunk, Prepared, prepare


@contextlib.contextmanager
def in_processes(config: PrepareConfig, tokenizer: Path, encoder: Encoder) -> Iterator[Callable[..., Iterator[Any]]]:
    """Gives a function that prepares chunks in order, in this process or in several.

    Args:
        config: the step's options.
        tokenizer: folder of the tokenizer, which every process loads for itself.
        encoder: the one of this process.
    """
    if config.processes == 1:
        yield lambda given: ((chunk, prepare(chunk, config, encoder)) for chunk in given)
        return
    # Not forked: the threads of a tokenizer do not exist in a fork.
    context = multiprocessing.get_context("spawn")
    initial = (config, tokenizer, encoder.fast, encoder.beyond)
    with concurrent.futures.ProcessPoolExecutor(config.processes, context, _init_worker, initial) as pool:
        yield lambda given: _in_order(pool, given, 2 * config.processes)


def _in_order(pool: Any, given: Iterable[Chunk], ahead: int) -> Iterator[tuple[Chunk, Prepared]]:
    # At most so many chunks wait: the reader must not run ahead and fill the memory.
    waiting: collections.deque[tuple[Chunk, Any]] = collections.deque()
    for chunk in given:
        waiting.append((chunk, pool.submit(_prepare_in_worker, chunk)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


_worker: tuple[PrepareConfig, Encoder]


def _init_worker(config: PrepareConfig, folder: Path, fast: bool, beyond: dict[int, str]) -> None:
    global _worker
    quiet_libraries()
    tokenizer = loading.load_tokenizer(folder)
    _worker = (config, Encoder(tokenizer, config.max_length, config.supervise == "last", fast, beyond))


def _prepare_in_worker(chunk: Chunk) -> Prepared:
    return prepare(chunk, *_worker)
