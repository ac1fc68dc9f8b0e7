"""A base in an object store is read twice. A bit that is flipped in the second read only ends the merge, too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, safetensors_files
from qlora_pipelines.components.core.store import attempts, objects, storage
from qlora_pipelines.components.dequantize_and_merge import streaming, task
from tests.components.conftest import digest, sealed
from tests.components.dequantize_and_merge.conftest import save_adapter, save_base
from tests.meddling import MEDDLINGS, Meddler

WEIGHTS = "model.safetensors"
PART = 5 << 20
"""The smallest part that S3 takes: the base has two of them."""


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path) -> Path:
    return save_base(tmp_path / "base", tiny_model, width=768)


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])


def merge(base_uri: str, revision: str, adapter: Path) -> attempts.Finished:
    given = {"adapter": str(sealed(adapter, base_revision=revision)), "adapter_digest": digest(adapter)}
    config = MergeConfig(merge_base="original")  # no weight has a digest of its own
    found = task.run(config, base_uri=base_uri, base_revision=revision, merge_key="key", **given)
    return attempts.read(found.merged_uri)


@pytest.fixture
def undisturbed(base: Path, adapter: Path, tmp_path: Path) -> dict[str, Any]:
    """The files of a merge in a local folder, sizes and hashes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(storage.STORE_VARIABLE, str(tmp_path / "local"))
        return merge(str(base), base_model.resolve(str(base), ""), adapter).files


@pytest.fixture(params=["in place", "in place, in parts", "staged"])
def place_of_base(
    request: pytest.FixtureRequest, base: Path, undisturbed: object, bucket: str, s3_place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, str]:  # fmt: skip
    """Address and revision of the base on S3: its ETags are MD5s, or no checksums, or it has a manifest."""
    uri = f"{bucket}/base"
    if request.param != "in place":
        monkeypatch.setattr(objects, "PART", PART)
    storage.upload(base, uri)
    (entry,) = (entry for entry in storage.files(uri) if entry.path == WEIGHTS)
    assert objects.is_md5(entry.etag.removeprefix("etag:")) == (request.param == "in place") and entry.size > PART
    if request.param == "staged":
        files = {
            name: {"size": size, "sha256": storage.sha256(f"{uri}/{name}", size)}
            for name, size in storage.sizes(uri).items()
        }
        attempts.finish(uri, {}, files)
        return uri, "0" * 40
    base_model.fetch(uri, s3_place / "as training does")
    return uri, base_model.resolve(uri, "")


def before(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, do: Callable[[], None]) -> None:
    """Does something before each call of a function."""
    function = getattr(module, name)

    def call(*args: Any, **options: Any) -> Any:
        do()
        return function(*args, **options)

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize("times", [1, 1000], ids=["once", "always"])
@pytest.mark.parametrize(
    ("module", "name"),
    [(safetensors_files, "read_header"), (streaming, "write")],
    ids=["header", "tensors"],
)
def test_a_bit_that_is_flipped_in_the_second_read(
    module: Any, name: str, times: int, between: Meddler, place_of_base: tuple[str, str], adapter: Path,
    undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, s3_place: Path,
) -> None:  # fmt: skip
    """Refused if it is flipped again in the next try; else the merged model is as if it had not been."""

    def meddle() -> None:
        between.meddling, between.only, between.times = MEDDLINGS[2], WEIGHTS, times

    before(monkeypatch, module, name, meddle)
    if times == 1:
        assert merge(*place_of_base, adapter).files == undisturbed
    else:
        with pytest.raises(InputError, match=f"{WEIGHTS}: other bytes came than at its first read") as error:
            merge(*place_of_base, adapter)
        assert "\n" not in str(error.value)
        assert not list(storage.files(f"{storage.root()}/merged", hidden=True))
    assert between.meddled


def test_a_bit_that_is_flipped_in_every_read(between: Meddler, place_of_base: tuple[str, str], adapter: Path) -> None:
    between.meddling, between.only = MEDDLINGS[2], WEIGHTS
    with pytest.raises(InputError, match=r"other bytes came|first read|is not the file that its manifest lists"):
        merge(*place_of_base, adapter)
    assert not list(storage.files(f"{storage.root()}/merged", hidden=True))


def test_undisturbed_each_byte_comes_twice(
    between: Meddler, place_of_base: tuple[str, str], adapter: Path, undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Pieces of tensors begin and end within blocks, and no block comes again for that."""
    read, came = objects.read, []

    def count(uri: str, *args: Any) -> bytes:
        data = read(uri, *args)
        if uri.endswith(WEIGHTS):
            came.append(len(data))
        return data

    monkeypatch.setattr(objects, "read", count)
    assert merge(*place_of_base, adapter).files == undisturbed
    assert sum(came) == 2 * storage.sizes(place_of_base[0])[WEIGHTS]
