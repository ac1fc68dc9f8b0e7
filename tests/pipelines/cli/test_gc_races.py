"""gc next to runs, to registrations, and killed: nothing is lost."""

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from qlora_pipelines.components.core.registry import integrity, references
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.register_model import task
from tests.pipelines.cli.gc_work import client, merged, record_run
from tests.pipelines.cli.registered import Make, aged, qlora, register


@contextlib.contextmanager
def before_change(number: int, call: Callable[[], None]) -> Iterator[list[str]]:
    """Runs `call` before the change to the store with this number (from 1) that is made in the block.

    Returns:
        The changes that were made, by name.
    """
    names = ("delete", "remove", "write_bytes")
    real = {name: getattr(storage, name) for name in names}
    made: list[str] = []

    def counted(name: str) -> Any:
        def change(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) == number:
                with replaced(real):
                    call()
            return real[name](*args, **kwargs)

        return change

    with replaced({name: counted(name) for name in names}):
        yield made


@contextlib.contextmanager
def replaced(functions: dict[str, Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, function in functions.items():
            patch.setattr(storage, name, function)
        yield


def assert_ok(result: Result) -> None:
    assert result.exit_code == 0, result.output


def old_work(make_merged: Make, store: str) -> Path:
    """A merged model of a run of a month ago that was never registered."""
    shutil.rmtree(f"{store}/merged/key", ignore_errors=True)
    record_run(store, "key")
    return merged(make_merged, store, "key")


def test_a_run_that_begins_at_any_moment_of_gc_loses_nothing(make_merged: Make, store: str) -> None:
    """Its plan writes its record, then it looks for finished work: what it finds is there when gc has ended."""
    found: list[attempts.Finished | None] = []

    def begin() -> None:
        references.write(references.registry_id(client()), [store], "key", ["merged/key"])
        found.append(attempts.find(f"{store}/merged/key"))

    for number in itertools.count(1):
        old_work(make_merged, store)
        with before_change(number, begin) as changes:
            assert_ok(qlora("gc"))
        if len(changes) < number:
            break
        if work := found[-1]:
            assert attempts.find(f"{store}/merged/key") == work and not attempts.altered(work.uri, work.files)
    assert found[0] and not all(found)  # before the first change it is finished, later it is not


def test_gc_at_any_moment_of_a_registration_loses_nothing(make_merged: Make, store: str, tmp_path: Path) -> None:
    """The merged model is a month old: only the run's record says that it is needed, until its version is there."""
    for number in itertools.count(1):
        name, uri = f"model{number}", old_work(make_merged, store)
        record_run(store, "key", days=0)
        given = {"merged_digest": integrity.digest(attempts.read(str(uri))), "merge_key": "key"}
        with before_change(number, lambda: assert_ok(qlora("gc"))) as changes:
            result = task.run(task.Config(model_name=name), merged_uri=str(uri), **given)
        assert result.outcome == "champion"
        assert_ok(qlora("pull", f"models:/{name}@champion", "--to", tmp_path / name))
        client().delete_registered_model(name)
        if len(changes) < number:
            break
    assert number > 5


def test_a_killed_gc_loses_nothing_and_the_next_one_ends_its_work(make_merged: Make, store: str) -> None:
    kept, _ = register(make_merged, store, "one")
    aged(Path(kept), 30)
    for number in itertools.count(1):
        gone = old_work(make_merged, store)
        child = os.fork()
        if not child:
            with before_change(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                qlora("gc")
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        work = attempts.read(kept)
        assert not attempts.missing(kept, work.files) and not attempts.altered(kept, work.files)
        left = attempts.find(f"{store}/merged/key")
        assert left is None or not attempts.altered(left.uri, left.files)  # whole, or not finished
        assert_ok(qlora("gc"))
        assert not gone.exists()
        if not killed:
            break
    assert number > 2
