"""Every option changes exactly the keys of what it changes; found by going through the configs' fields."""

import typing
from typing import Any

import pytest

from components.core import keys
from components.core.config import (
    NOT_IN_KEY,
    EvaluateConfig,
    MergeConfig,
    PrepareConfig,
    RunConfig,
    StepConfig,
    TrainConfig,
)

MADE: dict[type[StepConfig], set[str]] = {
    PrepareConfig: {"data", "training", "merge"},
    TrainConfig: {"training", "merge"},
    MergeConfig: {"merge"},
    EvaluateConfig: set(),
}
"""The keys that an option of a step takes part in, unless it is marked NOT_IN_KEY."""
NOT_IN_ANY = {
    PrepareConfig: {"processes"},
    EvaluateConfig: {"eval_batch_tokens"},
    TrainConfig: {
        "attention",
        "gradient_checkpointing",
        "checkpoint_steps",
        "checkpoint_minutes",
        "keep_checkpoints",
        "setup_limit_minutes",
        "step_limit_minutes",
    },
}
"""Options that change how a step works and not what comes out. A new one is added here with thought."""
OPTIONS = [(config, name) for config in MADE for name in config.model_fields]
OTHER: dict[str, Any] = {
    "columns": {"prompt": "question"},
    "target_modules": "q_proj",
    "modules_to_save": "embed_tokens",
    "answer_metrics": ["chrf"],
    "lm_eval_tasks": ["arc_easy"],
    "baseline_messages": [{"a": "b"}],
}
"""Another value, where none can be made from the default."""


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
    """The three keys of a run with these configs."""
    data = keys.data_key("data", typing.cast(PrepareConfig, changed.get("PrepareConfig", PrepareConfig())), "tokenizer")
    train = typing.cast(TrainConfig, changed.get("TrainConfig", TrainConfig()))
    training = keys.training_key("revision", data, train)
    merge = keys.merge_key(training, typing.cast(MergeConfig, changed.get("MergeConfig", MergeConfig())))
    return {"data": data, "training": training, "merge": merge}


def differing(first: dict[str, str], second: dict[str, str]) -> set[str]:
    return {name for name in first if first[name] != second[name]}


@pytest.mark.parametrize(("config", "name"), OPTIONS, ids=[f"{c.__name__}.{n}" for c, n in OPTIONS])
def test_an_option_changes_the_keys_of_what_it_changes_and_no_other(config: type[StepConfig], name: str) -> None:
    changed = config(**{name: another(config, name)})
    expected = set() if name in NOT_IN_ANY.get(config, set()) else MADE[config]
    assert differing(computed(), computed(**{config.__name__: changed})) == expected


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
