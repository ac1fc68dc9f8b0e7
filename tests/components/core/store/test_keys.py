"""Every option changes exactly the keys of what it changes; found by going through the configs' fields."""

import typing
from typing import Any

import pytest

from qlora_pipelines.components.core.config.base import NOT_IN_KEY
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import (
    STEPS,
    EvaluateConfig,
    MergeConfig,
    PrepareConfig,
    StepConfig,
    TrainConfig,
)
from qlora_pipelines.components.core.store import keys

MADE: dict[type[StepConfig], set[str]] = {
    PrepareConfig: {"data", "training", "merge"},
    TrainConfig: {"training", "merge"},
    MergeConfig: {"merge"},
    EvaluateConfig: {"evaluation"},
}
"""The keys that an option of a step takes part in, unless it is marked NOT_IN_KEY."""
NOT_IN_ANY = {
    PrepareConfig: {"processes", "chat_template"},
    EvaluateConfig: {"eval_batch_tokens", "use_cpu"},
    TrainConfig: {
        "use_cpu",
        "attn_implementation",
        "gradient_checkpointing",
        "save_steps",
        "save_minutes",
        "save_total_limit",
        "setup_limit_minutes",
        "step_limit_minutes",
        "max_restarts",
    },
}
"""Options that change how a step works and not what comes out. A new one is added here with thought."""
OPTIONS = [(config, name) for config in MADE for name in config.model_fields]
OTHER: dict[str, Any] = {
    "columns": {"prompt": "question"},
    "chat_template": "chatml",
    "packing": False,
    "extra_columns": ["source"],
    "target_modules": "q_proj",
    "modules_to_save": "embed_tokens",
    "answer_metrics": ["chrf"],
    "lm_eval_tasks": ["arc_easy"],
    "baseline_messages": [{"a": "b"}],
}
"""Another value, where none can be made from the default."""
BESIDE: dict[str, dict[str, Any]] = {"fsdp": {"processes": 2}}
"""What an option's other value needs beside it."""


def another(config: type[StepConfig], name: str) -> Any:
    """A valid value that is not the default."""
    field = config.model_fields[name]
    if name in OTHER:
        return OTHER[name]
    if isinstance(field.default, bool):
        return not field.default
    if typing.get_origin(field.annotation) is typing.Literal:
        return next(value for value in typing.get_args(field.annotation) if value != field.default)
    for value in (field.default + 1, field.default + 0.01, field.default / 2):
        try:
            config(**{name: value})
        except ValueError:
            continue
        return value
    raise AssertionError(f"give {name} another value in OTHER")


def computed(**changed: StepConfig) -> dict[str, str]:
    """The three keys of a run with these configs, and that of an evaluation."""
    data = keys.data_key("data", typing.cast(PrepareConfig, changed.get("PrepareConfig", PrepareConfig())), "tokenizer")
    train = typing.cast(TrainConfig, changed.get("TrainConfig", TrainConfig()))
    training = keys.training_key("revision", data, train)
    merge = keys.merge_key(training, typing.cast(MergeConfig, changed.get("MergeConfig", MergeConfig())))
    found = evaluation(typing.cast(EvaluateConfig, changed.get("EvaluateConfig", EvaluateConfig())))
    return {"data": data, "training": training, "merge": merge, "evaluation": found}


JUDGED = {"dataset_digest": "d", "side": "eval", "base_revision": "r", "model_digest": "m", "compared_with": "c"}


def evaluation(config: EvaluateConfig, **changed: str) -> str:
    return keys.evaluation_key(config, **(JUDGED | changed))


def differing(first: dict[str, str], second: dict[str, str]) -> set[str]:
    return {name for name in first if first[name] != second[name]}


@pytest.mark.parametrize(("config", "name"), OPTIONS, ids=[f"{c.__name__}.{n}" for c, n in OPTIONS])
def test_an_option_changes_the_keys_of_what_it_changes_and_no_other(config: type[StepConfig], name: str) -> None:
    beside = BESIDE.get(name, {})
    changed, before = config(**{name: another(config, name)}, **beside), config(**beside)
    expected = set() if name in NOT_IN_ANY.get(config, set()) else MADE[config]
    assert differing(computed(**{config.__name__: before}), computed(**{config.__name__: changed})) == expected


RUN: dict[str, Any] = {"base_model": "m", "dataset_uri": "d", "model_name": "n", "eval_dataset_uri": "e"}
OF_A_RUN: dict[str, tuple[Any, set[str]]] = {
    # What these name is in the keys by its content: the revision, the data's digest, the tokenizer's.
    "base_model": ("other", set()),
    "base_revision": ("other", set()),
    "dataset_uri": ("other", set()),
    "eval_dataset_uri": ("other", set()),
    "model_name": ("other", set()),
    "gpu_memory_gib": (80.0, set()),
    "max_length": (512, {"data_key", "training_key", "merge_key"}),
    "num_train_epochs": (2.0, {"training_key", "merge_key"}),
    "learning_rate": (1e-3, {"training_key", "merge_key"}),
    "lora_r": (8, {"training_key", "merge_key"}),
    "seed": (1, {"training_key", "merge_key"}),
    "options": ({}, set()),
}
"""Every option of a run: another value, and the keys that it changes."""


def of_run(**changed: Any) -> dict[str, str]:
    config = RunConfig.parse(**{**RUN, **changed})
    found = keys.of_run(config, base_revision="revision", data_digest="data", tokenizer_digest="tokenizer")
    return found._asdict()


def test_the_table_of_a_runs_options_is_whole() -> None:
    assert OF_A_RUN.keys() == RunConfig.model_fields.keys()


@pytest.mark.parametrize("name", OF_A_RUN)
def test_an_option_of_a_run_changes_its_keys_and_no_other(name: str) -> None:
    value, expected = OF_A_RUN[name]
    assert differing(of_run(), of_run(**{name: value})) == expected


@pytest.mark.parametrize(("config", "name"), OPTIONS, ids=[f"{c.__name__}.{n}" for c, n in OPTIONS])
def test_an_option_that_travels_in_options_does_too(config: type[StepConfig], name: str) -> None:
    value = another(config, name)
    step = next(step for step, of_step in STEPS.items() if of_step is config)
    beside = BESIDE.get(name, {})
    before = of_run(options={step: beside})
    if name in RunConfig.model_fields:
        changed = of_run(**{name: value})
    else:
        changed = of_run(options={step: {name: value} | beside})
    expected = set() if name in NOT_IN_ANY.get(config, set()) else {f"{key}_key" for key in MADE[config]}
    expected.discard("evaluation_key")  # known only once there is something to judge
    assert differing(before, changed) == expected


def test_what_takes_part_in_no_key_is_marked_so() -> None:
    for config in MADE:
        marked = {name for name, field in config.model_fields.items() if field.json_schema_extra == NOT_IN_KEY}
        assert marked == NOT_IN_ANY.get(config, set())


def test_whatever_else_decides_the_result_is_in_the_keys() -> None:
    train = TrainConfig()
    data = keys.data_key("data", PrepareConfig(), "tokenizer")
    base = keys.training_key("revision", data, train)
    others = [
        keys.training_key("other", data, train),
        keys.training_key("revision", keys.data_key("other", PrepareConfig(), "tokenizer"), train),
        keys.training_key("revision", keys.data_key("data", PrepareConfig(), "other"), train),
    ]
    assert len({base, *others}) == len(others) + 1


def test_whatever_an_evaluation_depends_on_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {evaluation(EvaluateConfig()), *(evaluation(EvaluateConfig(), **{name: "other"}) for name in JUDGED)}
    for number in ("FORMAT", "EVALUATION_FORMAT"):
        monkeypatch.setattr(keys, number, 99)
        found.add(evaluation(EvaluateConfig()))
    assert len(found) == len(JUDGED) + 3


def test_the_order_of_options_plays_no_part() -> None:
    first, second = (
        PrepareConfig(columns=columns) for columns in ({"prompt": "p", "text": "t"}, {"text": "t", "prompt": "p"})
    )
    assert keys.data_key("d", first, "t") == keys.data_key("d", second, "t")


def test_the_gpu_that_a_run_gets_is_in_no_key() -> None:
    run = {"base_model": "m", "dataset_uri": "d", "model_name": "n"}
    small, large = (RunConfig(**run, gpu_memory_gib=gib) for gib in (16, 80))
    assert [small.for_step(s) for s in ("train_qlora", "prepare_dataset")] == [
        large.for_step(s) for s in ("train_qlora", "prepare_dataset")
    ]
