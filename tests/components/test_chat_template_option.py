"""A base without a chat template: it is trained on plain text as it is, and on conversations with a template given."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.config.steps import RegisterConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, run_tokenizer
from qlora_pipelines.components.dequantize_and_merge import task as merge
from qlora_pipelines.components.evaluate_model import task as evaluate
from qlora_pipelines.components.plan_run import preflight
from qlora_pipelines.components.plan_run import task as plan_run
from qlora_pipelines.components.prepare_dataset import task as prepare
from qlora_pipelines.components.register_model import task as register
from qlora_pipelines.components.train_qlora import task as train
from qlora_pipelines.pipelines.triggers import new_data
from tests.components.conftest import WORDS
from tests.components.dequantize_and_merge.test_files import change
from tests.conftest import CHAT_TEMPLATE, conversation, write_jsonl

CHAT = [conversation(f"the {first} sat on {last}", last) for first in WORDS for last in WORDS[:6]]
TEXT = [{"text": f"the {first} sat on {last}"} for first in WORDS for last in WORDS[:6]]


@pytest.fixture
def bare(tiny_model: Path, place: Path) -> Path:
    """The tiny model without a chat template, whose own end is the end of text."""
    base = Path(shutil.copytree(tiny_model, place / "base"))
    (base / "chat_template.jinja").unlink()
    change(base / "tokenizer_config.json", eos_token="<|endoftext|>")
    for name in ("config", "generation_config"):
        change(base / f"{name}.json", eos_token_id=0)
    return base


def config(base: Path, place: Path, rows: list[Any], chat_template: str = "") -> PlacedRun:
    return PlacedRun(
        base_model=str(base),
        dataset_uri=str(write_jsonl(place / "rows.jsonl", rows)),
        model_name="bare",
        max_length=64,
        options={
            "prepare_dataset": {"eval_share": 0.2} | ({"chat_template": chat_template} if chat_template else {}),
            "train_qlora": {"max_steps": 2, "batch_tokens": 256, "max_restarts": 0},
            "evaluate_model": {"generation_rows": 2, "max_new_tokens": 4, "swapped_rows": 0},
        },
    )


def run(made: PlacedRun, base: Path, place: Path) -> tuple[plan_run.Result, Path, Path]:
    """Plans, prepares, trains, evaluates and merges; gives the plan, the adapter and the merged model's folder."""
    plan = plan_run.run(made, report=str(place / "plan.html"))
    train_set, eval_set, adapter = (str(place / name) for name in ("train.parquet", "eval.parquet", "adapter"))
    data = prepare.run(
        prepare.Config.parse(plan.prepare_options, max_length=64),
        listing_uri=plan.listing_uri,
        tokenizer_uri=plan.tokenizer_uri,
        train_set=train_set,
        eval_set=eval_set,
        rejected=str(place / "rejected.jsonl"),
        report=str(place / "data.html"),
        data_key=plan.data_key,
    )
    trained = train.run(
        made.for_step("train_qlora"),
        train_set=train_set,
        dataset_digest=data.dataset_digest,
        base_uri=str(base),
        base_revision=plan.base_revision,
        training_key=plan.training_key,
        tokenizer_uri=plan.tokenizer_uri,
        adapter=adapter,
        report=str(place / "training.html"),
    )
    evaluate.run(
        made.for_step("evaluate_model"),
        eval_set=eval_set,
        dataset_digest=data.dataset_digest,
        base_uri=str(base),
        adapter=adapter,
        adapter_digest=trained.adapter_digest,
        scores=str(place / "scores"),
        report=str(place / "evaluation.html"),
    )
    merged = merge.run(
        made.for_step("dequantize_and_merge"),
        base_uri=str(base),
        base_revision=plan.base_revision,
        adapter=adapter,
        adapter_digest=trained.adapter_digest,
        merge_key=plan.merge_key,
    )
    register.run(RegisterConfig(model_name="bare"), **merged._asdict(), merge_key=plan.merge_key)
    return plan, Path(adapter), Path(merged.merged_uri)


def test_plain_text_needs_no_template(bare: Path, place: Path) -> None:
    import mlflow
    import yaml

    _, adapter, merged = run(config(bare, place, TEXT), bare, place)
    for folder in (adapter, merged / "model"):
        assert (folder / "tokenizer.json").read_bytes() == (bare / "tokenizer.json").read_bytes()
        assert not list(folder.glob("chat_template*"))
    flavor = yaml.safe_load((merged / "MLmodel").read_text())["flavors"]["transformers"]
    assert flavor["inference_task"] == "llm/v1/completions"
    served = mlflow.pyfunc.load_model(str(merged))
    (said,) = served.predict(json.loads((merged / "input_example.json").read_text()))
    assert said["choices"][0]["text"]


def test_a_template_of_a_file_is_trained_judged_saved_and_served(bare: Path, place: Path) -> None:
    """The file may change or go once the run is planned."""
    import mlflow

    file = place / "mine.jinja"
    file.write_text(CHAT_TEMPLATE)
    made = config(bare, place, CHAT, str(file))
    plan = plan_run.run(made, report=str(place / "plan.html"))
    assert new_data.snapshot(made).keys.training_key == plan.training_key
    again = PlacedRun.parse(json.loads(plan.run_config))
    file.write_text(CHAT_TEMPLATE + "{# changed #}")
    assert plan_run.run(made, report=str(place / "plan.html")).training_key != plan.training_key
    file.unlink()
    other, adapter, merged = run(again, bare, place)
    assert (other.training_key, other.data_key) == (plan.training_key, plan.data_key)
    for folder in (adapter, merged / "model"):
        assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
        assert (folder / "tokenizer.json").read_bytes() == (bare / "tokenizer.json").read_bytes()
    served = mlflow.transformers.load_model(str(merged))
    assert served.model.generation_config.eos_token_id == [0, 2]


def test_conversations_without_a_template_are_refused_in_one_line(bare: Path, place: Path) -> None:
    with pytest.raises(InputError) as error:
        plan_run.run(config(bare, place, CHAT), report=str(place / "plan.html"))
    assert "\n" not in str(error.value)
    assert "row 1: the base's tokenizer has no chat template: take the model's chat or instruct version, or" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("chat_template", "said"),
    [
        ("chatm", "chat_template chatm: no such template; did you mean chatml?; or give the address of a Jinja file"),
        ("nowhere/a.jinja", "chat_template nowhere/a.jinja: cannot be read: No such file"),
        ("{place}/broken.jinja", "broken.jinja: line 2: "),
        ("{place}/empty.jinja", "empty.jinja: it is empty"),
        ("llama3", "chat_template llama3: with this base's tokenizer an answer ends in ordinary text, and no model"),
        ("{place}/none.jinja", "none.jinja: with this base's tokenizer an answer ends in ordinary text, and no model"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(bare: Path, place: Path, chat_template: str, said: str) -> None:
    (place / "broken.jinja").write_text("{% for a in b %}\n{% endif %}")
    (place / "empty.jinja").write_text(" \n")
    (place / "none.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    made = config(bare, place, CHAT, chat_template.format(place=place))
    fatal = preflight.run(made, place).fatal
    assert any(said in text for text in fatal), fatal


MARKS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "mistral": ["[INST]", "[/INST]"],
    "alpaca": [],
}


@pytest.mark.parametrize("name", sorted(MARKS))
def test_each_template_ends_its_answers_and_keeps_earlier_ones(name: str, tmp_path: Path) -> None:
    from qlora_pipelines.components.core.data import chat_template
    from qlora_pipelines.components.core.models import stop_tokens
    from tests.components.core.models.test_stop_tokens import tokenizer

    tokenizer(None, "</s>", ("<s>", "</s>", *MARKS[name])).save_pretrained(tmp_path / "base")
    made = loading.load_tokenizer(run_tokenizer.make(tmp_path / "base", name, tmp_path / "made"))
    turns = [("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = [{"role": role, "content": content} for role, content in turns]
    encoded = chat_template.encode(made, messages, 1000)
    text = made.decode(encoded.input_ids)
    assert all(text.count(content) == 1 for _, content in turns)
    assert text.count("<s>") == (name != "chatml")
    ends = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
    end = ends.get(name, "</s>")
    assert made.decode([label for label in encoded.labels if label != chat_template.IGNORED]) == f"two{end}four{end}"
    assert stop_tokens.eos_token_ids(made) == sorted({1, made.convert_tokens_to_ids(end)})
    assert run_tokenizer.names() == sorted(MARKS)


def test_it_takes_the_place_of_all_templates_that_the_base_has(tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    change(base / "chat_template.json", chat_template="old")
    change(base / "tokenizer_config.json", chat_template="old")
    made = run_tokenizer.make(base, "chatml", tmp_path / "made")
    assert not (made / "chat_template.json").exists() and not (made / "additional_chat_templates").exists()
    assert "chat_template" not in json.loads((made / "tokenizer_config.json").read_text())
    assert loading.load_tokenizer(made).chat_template == run_tokenizer.template("chatml")
    assert (made / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    again = run_tokenizer.make(made, str(made / "chat_template.jinja"), tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }
