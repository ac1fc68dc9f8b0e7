"""The headers of a base's weight files, whole and torn, against its config.json."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.models.safetensors_files import INDEX
from qlora_pipelines.components.plan_run import preflight, weight_files
from tests.components.stage_base_model.hub_server import COMMIT, Hub, serve

ONE = "model.safetensors"
NORM = "model.norm.weight"


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def compared(base: Path) -> tuple[str, str]:
    return weight_files.compare(weight_files.read(str(base), "").shapes, loading.empty_model(base))


def test_the_tensors_and_bytes_of_one_file(base: Path) -> None:
    found = weight_files.read(str(base), "")
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in load_file(base / ONE).items()}
    assert found.size == (base / ONE).stat().st_size
    assert compared(base)[0] == "ok"


def test_the_tensors_of_several_files(base: Path) -> None:
    whole = weight_files.read(str(base), "").shapes
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="100KB")
    (base / ONE).unlink(missing_ok=True)
    names = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(names) > 1 and weight_files.read(str(base), "").shapes == whole
    (base / names[1]).unlink()
    with pytest.raises(InputError) as error:
        weight_files.read(str(base), "")
    assert str(error.value) == (
        f"base model {base}: {names[1]} is missing, which model.safetensors.index.json names; fetch it again"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[:-10], "is torn: it has {0} bytes, its header says {1}; fetch it again"),
        (lambda whole: whole + b"more", "is torn: it has {0} bytes, its header says {1}; fetch it again"),
        (lambda whole: whole[:100], "is torn: its header is longer than the file; fetch it again"),
        (lambda whole: b"", "is torn: its header is longer than the file; fetch it again"),
        (lambda whole: b"\x04" + bytes(7) + b"nope", "is no safetensors file: its header cannot be read"),
        (lambda whole: b"\x02" + bytes(7) + b"[]", "is no safetensors file: its header cannot be read"),
    ],
)
def test_a_torn_file(base: Path, content: object, message: str) -> None:
    whole = (base / ONE).read_bytes()
    cut = content(whole)  # type: ignore[operator]
    (base / ONE).write_bytes(cut)
    with pytest.raises(InputError) as error:
        weight_files.read(str(base), "")
    assert str(error.value) == f"{base}/{ONE} {message.format(len(cut), len(whole))}"


def changed(base: Path, **tensors: torch.Tensor | None) -> tuple[str, str]:
    names = {"norm": NORM, "old_norm": "transformer.ln_f.weight", "head": "lm_head.weight"}
    held = load_file(base / ONE) | {names[name]: tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, base / ONE, {"format": "pt"})
    return compared(base)


def test_a_parameter_of_another_shape_is_fatal(base: Path) -> None:
    assert changed(base, norm=torch.zeros(7)) == (
        "fatal",
        "model.norm.weight is of shape [7] in the files, but [64] by config.json",
    )


def test_a_missing_parameter_is_fatal_and_may_have_been_renamed_where_another_is_unknown(base: Path) -> None:
    missing = "the files hold no model.norm.weight, which config.json describes (1 of 20 are missing)"
    assert changed(base, norm=None) == ("fatal", missing)
    level, text = changed(base, old_norm=torch.zeros(64))
    assert level == "warning"
    assert text == f"{missing}, but transformer.ln_f.weight; transformers may rename it while it loads"


def test_a_tied_head_may_be_stored_or_not(base: Path) -> None:
    embeddings = load_file(base / ONE)["model.embed_tokens.weight"]
    assert changed(base, head=embeddings.clone())[0] == "ok"


def test_a_plan_names_what_does_not_fit_its_config(base: Path, place: Path) -> None:
    (place / "rows.jsonl").write_text('{"text": "a"}\n')
    changed(base, norm=None)
    config = PlacedRun(base_model=str(base), dataset_uri=str(place / "rows.jsonl"), model_name="n", max_length=64)
    found = preflight.run(config, place)
    assert found.fatal == [
        f"base model {base}: the files hold no model.norm.weight, which config.json describes (1 of 20 are missing)"
    ]
    assert found.weights and found.weights.sizes == ((base / ONE).stat().st_size,)


@pytest.fixture
def hub(base: Path) -> Iterator[Hub]:
    with serve(Hub({name: (base / name).read_bytes() for name in ("config.json", ONE)})) as hub:
        yield hub


def test_headers_are_read_from_the_hub(hub: Hub, base: Path) -> None:
    assert weight_files.read("org/model", COMMIT) == weight_files.read(str(base), "")
    assert hub.requests == [("GET", ONE, "bytes=0-65535")] and len(hub.files[ONE]) > 1 << 17
    hub.files[ONE] = hub.files[ONE][:-4096]
    with pytest.raises(InputError, match=r"org/model/model.safetensors is torn: it has \d+ bytes, its"):
        weight_files.read("org/model", COMMIT)


def test_an_index_that_is_none(base: Path) -> None:
    (base / ONE).rename(base / "model-00001-of-00001.safetensors")
    (base / INDEX).write_text(json.dumps([]))
    with pytest.raises(InputError, match=r"model.safetensors.index.json cannot be read; fetch it again"):
        weight_files.read(str(base), "")
