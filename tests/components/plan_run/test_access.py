"""All that a run reaches for, tried at once: each bad thing has its message, and all of them come together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.core import attempts, storage, tracking
from components.core.config import RunConfig
from components.core.errors import InputError
from components.plan_run import access, task
from tests.conftest import conversation, write_jsonl


@pytest.fixture
def config(place: Path, tiny_model: Path) -> dict[str, Any]:
    """A run that has nothing wrong with it."""
    rows = write_jsonl(place / "rows.jsonl", [conversation(f"question {n}", "cat") for n in range(40)])
    return {"base_model": str(tiny_model), "dataset_uri": str(rows), "model_name": "tiny", "max_length": 64}


def plan(place: Path, config: dict[str, Any]) -> task.Result:
    return task.run(RunConfig.parse(**config), report=str(place / "plan.html"))


def test_a_good_run_leaves_no_probe_and_finds_nothing_finished(place: Path, config: dict[str, Any]) -> None:
    result = plan(place, config)
    assert {path.name for path in (place / "store").iterdir()} == {"listings", "tokenizers"}
    page = (place / "plan.html").read_text()
    for text in ("Nothing stands in the way", "not made yet", "lets one register", "has a chat template", "L40S 48 GB"):
        assert text in page
    assert plan(place, config) == result


def test_finished_work_is_found_by_its_key(place: Path, config: dict[str, Any]) -> None:
    result = plan(place, config)
    with attempts.attempt(storage.join(storage.root(), "adapters", result.training_key)) as attempt:
        attempt.commit({})
    adapter, merged = access.finished(result.training_key, result.merge_key)
    assert adapter.text.startswith("finished already: ") and merged.text == "not made yet"


def test_a_champion_whose_files_are_gone_is_said_before_a_gpu_is_held(place: Path, config: dict[str, Any]) -> None:
    client = tracking.client()
    client.create_registered_model("tiny")
    version = client.create_model_version("tiny", source=str(place / "gone")).version
    assert plan(place, config).champion_version == ""
    client.set_registered_model_alias("tiny", "champion", version)
    with pytest.raises(InputError, match=f"champion {version} of tiny: its files are gone from .*gone; put them back"):
        plan(place, config)


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(
    place: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("QLORA_STORE", str(place / "file" / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError) as error:
        plan(place, config | {"base_model": str(place / "none"), "dataset_uri": str(place / "none.jsonl")})
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "MLflow at http://127.0.0.1:9 does not answer",
        f"base model {place}/none: no such folder; give a folder with a model",
        f"data {place}/none.jsonl: nothing there; give a file",
        "cannot be written: Not a directory",
    ):
        assert part in text
    assert "4 things to mend" in (place / "plan.html").read_text()


def refused(place: Path, config: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        plan(place, config)
    return str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{broken\n", "its first row is not a JSON object; see the README for the forms that are read"),
        ("[1]\n", "its first row is not a JSON object; see the README for the forms that are read"),
    ],
)
def test_data_that_is_none(rows: str, message: str, place: Path, config: dict[str, Any]) -> None:
    (place / "rows.jsonl").write_text(rows)
    assert refused(place, config) == f"data {place}/rows.jsonl: {message}"


def test_a_base_with_pickles_only(place: Path, config: dict[str, Any], tiny_model: Path) -> None:
    base = shutil.copytree(tiny_model, place / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert refused(place, config | {"base_model": str(base)}) == (
        f"base model {base}: no *.safetensors there, only pytorch_model.bin; other formats can run code and are refused"
    )


def test_a_base_without_chat_template(place: Path, config: dict[str, Any], tiny_model: Path) -> None:
    base = shutil.copytree(tiny_model, place / "base", ignore=shutil.ignore_patterns("*.jinja"))
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    assert "has no chat template: take the model's chat or instruct version" in refused(
        place, config | {"base_model": str(base)}
    )


def test_an_architecture_that_transformers_does_not_know(place: Path, config: dict[str, Any], tiny_model: Path) -> None:
    base = shutil.copytree(tiny_model, place / "base")
    (base / "config.json").write_text('{"model_type": "nonsense", "auto_map": {"AutoConfig": "code.C"}}')
    text = refused(place, config | {"base_model": str(base)})
    assert text.startswith(f"base model {base}: ") and "\n" not in text


def test_a_target_that_matches_nothing(place: Path, config: dict[str, Any]) -> None:
    options = {"train_qlora": {"target_modules": "w_proj"}}
    assert refused(place, config | {"options": options}).startswith(
        "target_modules: w_proj matches no linear layer; this model has "
    )


def test_a_gpu_that_is_too_small(place: Path, config: dict[str, Any]) -> None:
    text = refused(place, config | {"gpu_memory_gib": 0.59})
    assert text.startswith("the run does not fit a GPU of 0.59 GiB: ") and "would fit" in text
    assert plan(place, config | {"gpu_memory_gib": 16}).training_key == plan(place, config).training_key
