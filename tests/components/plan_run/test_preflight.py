"""All that a run reaches for, tried at once: each bad thing has its message, and all of them come together."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.plan_run import preflight, task
from tests.conftest import conversation, write_jsonl


@pytest.fixture
def config(place: Path, tiny_model: Path) -> dict[str, Any]:
    """A run that has nothing wrong with it."""
    rows = write_jsonl(place / "rows.jsonl", [conversation(f"question {n}", "cat") for n in range(120)])
    return {"base_model": str(tiny_model), "dataset_uri": str(rows), "model_name": "tiny", "max_length": 64}


def plan(place: Path, config: dict[str, Any]) -> task.Result:
    return task.run(PlacedRun.parse(**config), report=str(place / "plan.html"))


def test_a_good_run_leaves_no_probe_and_finds_nothing_finished(place: Path, config: dict[str, Any]) -> None:
    result = plan(place, config)
    assert {path.name for path in (place / "store").iterdir()} == {"listings", "references", "tokenizers"}
    page = (place / "plan.html").read_text()
    for text in ("Nothing stands in the way", "not made yet", "lets one register", "has a chat template", "L40S 48 GB",
                 "The smallest that fits: RTX A4000 16 GB.", "rows of form messages"):  # fmt: skip
        assert text in page
    assert plan(place, config) == result


def test_finished_work_is_found_by_its_key(place: Path, config: dict[str, Any]) -> None:
    result = plan(place, config)
    with attempts.attempt(storage.join(storage.root(), "adapters", result.training_key)) as attempt:
        attempt.commit({})
    found = {finding.subject: finding.text for finding in preflight.run(PlacedRun.parse(**config), place).findings}
    assert found["adapter"].startswith("finished already: ") and found["merged model"] == "not made yet"
    assert "checkpoint" not in found


def test_the_same_run_again_works_from_what_the_first_one_did(place: Path, config: dict[str, Any]) -> None:
    """Registration makes the run's own version champion, and a cache hit needs the inputs of the first run."""
    first, client = plan(place, config), mlflow_client.connect()
    client.create_registered_model("tiny")

    def register(training_key: str, compared_with: str) -> str:
        source = str(place / training_key[:8])
        attempts.finish(source, {"training_key": training_key}, {})
        tags = {"qlora.training_key": training_key, "qlora.compared_with": compared_with}
        version = str(client.create_model_version("tiny", source=source, tags=tags).version)
        client.set_registered_model_alias("tiny", "champion", version)
        return version

    register(first.training_key, "no champion")
    assert plan(place, config) == first and first.champion_version == ""
    assert (
        "version 1 came out of this very training, which had no champion to match" in (place / "plan.html").read_text()
    )
    merged_otherwise = config | {"options": {"dequantize_and_merge": {"merge_base": "original"}}}
    assert plan(place, merged_otherwise).champion_version == ""
    other = config | {"seed": 7}
    second = plan(place, other)
    assert second.champion_version == "1"
    register(second.training_key, "1")
    assert plan(place, other) == second
    assert plan(place, config).champion_version == "2"


def test_the_newest_whole_checkpoint_is_named(place: Path, config: dict[str, Any]) -> None:
    result = plan(place, config)
    checkpoints = place / "store" / "checkpoints" / result.training_key
    for name in ("step-00000020/a/manifest.json", "step-00000040/b/manifest.json", "step-00000060/c/optimizer.pt"):
        (checkpoints / name).parent.mkdir(parents=True)
        (checkpoints / name).write_text("{}")
    plan(place, config)
    assert "training goes on from step 40" in (place / "plan.html").read_text()


def test_a_champion_whose_files_are_gone_is_said_before_a_gpu_is_held(place: Path, config: dict[str, Any]) -> None:
    client = mlflow_client.connect()
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
    assert "4 things to fix" in (place / "plan.html").read_text()


def refused(place: Path, config: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        plan(place, config)
    return str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{broken\n", "its first rows cannot be read; see the README for the kinds that are read"),
        ("[1]\n", "its first rows cannot be read; see the README for the kinds that are read"),
        (
            '{"a": 1, "b": 2}\n',
            "its rows are of no known form (columns a, b); name theirs in options, prepare_dataset.columns",
        ),
        (
            '{"messages": [{"role": "user", "content": "q"}]}\n',
            "none of its first 1 rows can be used: row 1: no assistant turn",
        ),
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


def levels(place: Path, config: dict[str, Any]) -> dict[str, str]:
    """What is not as it should be: the level of each text."""
    found = preflight.run(PlacedRun.parse(**config), place / "files").findings
    return {finding.text: finding.level for finding in found if finding.level != "ok"}


def test_many_near_duplicates_are_a_warning(place: Path, config: dict[str, Any]) -> None:
    rng = random.Random(0)
    asked = [" ".join(rng.choices(["cat", "mat", "one", "two", "three", "four"], k=30)) for _ in range(60)]
    rows = [conversation(f"{question}{end}", "cat") for question in asked for end in ("", " five")]
    write_jsonl(Path(config["dataset_uri"]), rows)
    [warning] = [text for text, level in levels(place, config).items() if level == "warning"]
    assert warning == (
        "train, first rows: 50% of the rows count as near duplicates of others and are left out; if they are"
        " not, set prepare_dataset.near_duplicate_threshold higher, or to 0"
    )
    assert levels(place, config | {"options": {"prepare_dataset": {"near_duplicate_threshold": 0}}}) == {}


def test_some_unusable_rows_are_a_warning(place: Path, config: dict[str, Any]) -> None:
    rows = Path(config["dataset_uri"])
    rows.write_text("{broken\n" + rows.read_text() + '{"messages": []}\n' * 3)
    assert levels(place, config) == {
        "train: 4 of the first 124 rows cannot be used (row 1: not JSON); 1.0% of all are allowed": "warning"
    }


def test_too_few_rows_to_evaluate_on(place: Path, config: dict[str, Any]) -> None:
    text = (
        "about 6 rows to evaluate on: the gate can decide nothing on fewer than 10, and the model will not be"
        " registered; give more data or raise eval_share"
    )
    assert levels(place, config | {"options": {"prepare_dataset": {"eval_share": 0.05}}}) == {text: "warning"}
    few = write_jsonl(place / "few.jsonl", [conversation(f"other {n}", "cat") for n in range(6)])
    assert levels(place, config | {"eval_dataset_uri": str(few)}) == {text: "warning"}


def changed_base(place: Path, tiny_model: Path, **values: Any) -> dict[str, Any]:
    """The run with a base whose config.json has other values."""
    base = shutil.copytree(tiny_model, place / "base")
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return {"base_model": str(base)}


def test_a_base_that_is_quantised_already(place: Path, config: dict[str, Any], tiny_model: Path) -> None:
    other = changed_base(place, tiny_model, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    found = levels(place, config | other)
    text = (
        f"base model {place}/base: its weights are quantised (bitsandbytes), and only FP8 and MXFP4 can be brought back"
        " to 16 bit; give the 16-bit model that it was made from"
    )
    assert found[text] == "fatal"


def test_conversations_beyond_the_positions_of_the_base(place: Path, config: dict[str, Any], tiny_model: Path) -> None:
    other = changed_base(place, tiny_model, max_position_embeddings=32)
    assert levels(place, config | other) == {
        f"base model {place}/base: max_length is 64, and its config.json says 32 positions: it was not trained beyond,"
        " and may do badly": "warning"
    }


def test_a_table_of_positions_ends(place: Path, config: dict[str, Any], tiny_model: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    base = shutil.copytree(tiny_model, place / "base")
    (base / "model.safetensors").unlink()
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=512)).save_pretrained(base)
    text = f"base model {base}: max_length is 64, and its config.json says 32 positions: it has no position beyond"
    assert levels(place, config | {"base_model": str(base)})[text] == "fatal"


def test_layers_that_would_mix_packed_conversations(place: Path, config: dict[str, Any], tiny_model: Path) -> None:
    """They are refused only where somebody insists: by itself, a run takes each conversation alone."""
    other = changed_base(place, tiny_model, layer_types=["full_attention", "linear_attention"])
    insisted = {"options": {"train_qlora": {"packing": True}}}
    found = levels(place, config | other | insisted)
    text = f"base model {place}/base: llama cannot be trained on packed conversations: its layers are full_attention,"
    assert any(line.startswith(text) and level == "fatal" for line, level in found.items()), found
    for options in ({}, {"options": {"train_qlora": {"packing": False}}}):
        assert not any("packed" in line for line in levels(place, config | other | options))


def test_a_store_without_room(place: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "free_bytes", lambda _: 1 << 10)
    assert refused(place, config) == (
        f"{place}/store has 0.0 GiB free, and this run writes 0.0 GiB: make room, or name another place in QLORA_STORE"
    )
    assert not (place / "store" / "listings").exists()


def test_without_a_gpu_the_plan_is_of_the_cpu(
    place: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result, on_gpu = plan(place, config | {"gpu_count": "0"}), plan(place, config)
    assert result.accelerator == "" and result.tolerations == [] and on_gpu.accelerator == "nvidia.com/gpu"
    assert json.loads(result.train_options) == {"use_cpu": True, "packing": True}
    assert json.loads(result.evaluate_options) == {"use_cpu": True}
    assert (result.training_key, result.run_config) == (on_gpu.training_key, on_gpu.run_config)
    said = capsys.readouterr().out.splitlines()
    assert any(line.endswith("GiB on the CPU") and "on a GPU" not in line for line in said)
    plan(place, config | {"gpu_count": "0"})
    page = (place / "plan.html").read_text()
    assert "Memory on the CPU" in page and "training on the CPU needs" in page
    assert "GPU types" not in page and "Memory on the GPU" not in page


def test_too_little_memory_for_the_cpu_is_said(place: Path, config: dict[str, Any]) -> None:
    said = refused(place, config | {"gpu_count": 0, "memory": "512Mi"})
    assert re.fullmatch(r"training on the CPU needs 1\.\d GiB, but memory is 512Mi: set memory 2Gi", said)
    assert plan(place, config | {"memory": "512Mi"})  # where there is a GPU it is not known what the host needs
