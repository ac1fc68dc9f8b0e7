"""What a trigger does on a real S3: claims, the age of data by the store's clock, and prefixes it may not read."""

import threading
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import claims, storage
from qlora_pipelines.pipelines.triggers import new_data

ROW = b'{"text": "one row"}\n'


@pytest.fixture
def data(own_store: str) -> str:
    uri = f"{own_store}/data"
    storage.write_bytes(f"{uri}/a.jsonl", ROW * 3)
    storage.write_bytes(f"{uri}-old/b.jsonl", ROW * 3)  # a neighbour whose name begins alike
    return uri


def config(data: str, base: Path) -> RunConfig:
    return RunConfig(base_model=str(base), dataset_uri=data, model_name="tiny")


def test_data_is_as_old_as_its_newest_object(data: str, tiny_model: Path) -> None:
    claims.time.sleep(2)
    looked = new_data.snapshot(config(data, tiny_model))
    assert looked.quiet >= 1
    assert looked.files == 1
    assert new_data.snapshot(config(f"{data}/a.jsonl", tiny_model)).quiet >= 1
    storage.write_bytes(f"{data}/c.jsonl", ROW)
    assert new_data.snapshot(config(data, tiny_model)).quiet < looked.quiet
    assert new_data.new_rows(new_data.snapshot(config(data, tiny_model)).listing, "", 100) == 4


def test_an_object_that_comes_while_it_is_listed(data: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = base_model.resolve

    def changing(name: str, revision: str) -> str:
        storage.write_bytes(f"{data}/d.jsonl", ROW)
        return resolve(name, revision)

    monkeypatch.setattr(base_model, "resolve", changing)
    with pytest.raises(InputError, match=r"d\.jsonl changed while it was listed"):
        new_data.snapshot(config(data, tiny_model))


@pytest.mark.parametrize(
    ("uri", "message"), [("s3://no-such-bucket/data", "no-such-bucket"), ("/empty", "nothing there")]
)
def test_a_prefix_that_is_empty_or_not_readable(
    data: str, tiny_model: Path, own_store: str, uri: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        new_data.snapshot(config(uri if uri.startswith("s3") else own_store + uri, tiny_model))


def test_of_eight_at_once_one_passes(own_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PAUSE", 3.0)
    place = claims.place("training", "tiny")
    barrier = threading.Barrier(8)
    passed: list[str] = []
    lost: list[str] = []

    def run(run_id: str) -> None:
        claim = claims.new(1)
        barrier.wait()
        written = claims.write(place, claim, run_id)
        try:
            claims.settle(place, claim, run_id, written)
            passed.append(run_id)
        except InputError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=run, args=(f"run-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 1 and len(lost) == 7
    assert all("makes the same model" in line for line in lost)
