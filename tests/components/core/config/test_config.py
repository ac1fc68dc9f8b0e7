import dataclasses
import json
import math

import pytest

from qlora_pipelines.components.core.config.base import json_text
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import OPTION_STEPS, STEPS, TrainConfig
from qlora_pipelines.components.core.errors import InputError

REQUIRED = {"base_model": "m", "dataset_uri": "d", "model_name": "n"}


def test_a_misspelt_option_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown option learning_rat; did you mean learning_rate\?"):
        TrainConfig.parse('{"learning_rat": 1}')
    with pytest.raises(InputError, match=r"unknown option data_set; did you mean dataset_uri\?"):
        RunConfig.parse(data_set="x", **REQUIRED)


def test_a_misspelt_option_of_a_step_is_named_too() -> None:
    with pytest.raises(InputError, match=r"train_qlora: unknown option batchtokens; did you mean batch_tokens\?"):
        RunConfig.parse(**REQUIRED, options={"train_qlora": {"batchtokens": 4}})
    with pytest.raises(InputError, match=r"options.train_qlra: no such step; did you mean train_qlora\?"):
        RunConfig.parse(**REQUIRED, options={"train_qlra": {}})


def test_the_same_option_twice_is_an_error() -> None:
    with pytest.raises(InputError, match="lora_r is given twice: as a parameter and in options"):
        RunConfig.parse(**REQUIRED, options={"train_qlora": {"lora_r": 8}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{", "options is not JSON"),
        ("[]", "options must be a JSON object"),
        ('{"lora_r": 0}', "lora_r: Input should be greater than or equal to 1"),
        ('{"learning_rate": "fast"}', "learning_rate: Input should be a valid number"),
    ],
)
def test_nonsense_is_refused_in_one_line(options: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        TrainConfig.parse(options)
    assert "\n" not in str(error.value)


def test_whole_numbers_may_arrive_as_floats() -> None:
    assert TrainConfig.parse('{"lora_r": 8.0}').lora_r == 8
    with pytest.raises(InputError, match="lora_r"):
        TrainConfig.parse('{"lora_r": 8.5}')


def test_options_reach_their_step() -> None:
    options = json.dumps({"train_qlora": {"batch_tokens": 300}})
    config = RunConfig.parse(**REQUIRED, learning_rate=0.01, options=options)
    train = config.for_step("train_qlora")
    assert (train.batch_tokens, train.learning_rate) == (300, 0.01)
    assert set(OPTION_STEPS) <= set(STEPS)


def test_all_that_is_wrong_is_said_at_once() -> None:
    options = {"train_qlora": {"lora_alpa": 1, "weight_decay": -1}, "merge": {}, "evaluate_model": {"confidence": 2}}
    with pytest.raises(InputError) as error:
        RunConfig.parse(**REQUIRED, options=options)
    assert str(error.value) == (
        "options.merge: no such step; there are: prepare_dataset, train_qlora, evaluate_model, dequantize_and_merge;"
        " train_qlora: weight_decay: Input should be greater than or equal to 0 (got -1); unknown option lora_alpa; did"
        " you mean lora_alpha?; evaluate_model: confidence: Input should be less than or equal to 0.999 (got 2)"
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_number_is_endless(number: float) -> None:
    with pytest.raises(InputError, match="num_train_epochs: Input should be a finite number"):
        RunConfig.parse(**REQUIRED, num_train_epochs=number)


def test_there_must_be_something_to_decontaminate_from() -> None:
    options = {"prepare_dataset": {"decontaminate_words": 13}}
    with pytest.raises(InputError, match="decontaminate_words compares with evaluation data: give eval_dataset_uri"):
        RunConfig.parse(**REQUIRED, options=options)
    assert RunConfig.parse(**REQUIRED, options=options, eval_dataset_uri="e")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"processes": 1}, "fsdp shards the base over several GPUs: set processes"),
        ({"use_dora": True}, "use_dora and fsdp do not go together"),
        ({"modules_to_save": "embed_tokens"}, "modules_to_save and fsdp do not go together"),
        ({"compute_dtype": "float16"}, "compute_dtype float16 and fsdp do not go together"),
    ],
)
def test_what_does_not_go_with_fsdp_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=f"^train_qlora: {said}"):
        RunConfig.parse(**REQUIRED, options={"train_qlora": {"fsdp": True, "processes": 2} | options})


def test_a_missing_option_is_named() -> None:
    with pytest.raises(InputError, match="model_name is required"):
        RunConfig.parse(base_model="m", dataset_uri="d")


def test_an_old_name_is_refused_with_the_new_one() -> None:
    for old, new in TrainConfig.renamed.items():
        assert new in TrainConfig.model_fields and old not in TrainConfig.model_fields
        with pytest.raises(InputError, match=rf"^{old} is now {new}$"):
            TrainConfig.parse({old: 1})
    with pytest.raises(InputError, match=r"^epochs is now num_train_epochs$"):
        RunConfig.parse(**REQUIRED, epochs=2)
    options = {"train_qlora": {"warmup_share": 0.1, "lora_alpha": 8, "checkpoint_steps": 5}}
    for given in (options, json.dumps(options)):
        with pytest.raises(InputError) as error:
            RunConfig.parse(**REQUIRED, options=given)
        assert str(error.value) == (
            "options.train_qlora.warmup_share is now warmup_steps;"
            " options.train_qlora.checkpoint_steps is now save_steps"
        )


def test_what_transformers_has_too_is_named_as_there() -> None:
    from transformers import TrainingArguments

    shared = {field.name for field in dataclasses.fields(TrainingArguments)} & set(TrainConfig.model_fields)
    assert shared >= {new for new in TrainConfig.renamed.values() if new not in ("save_minutes", "attn_implementation")}


@pytest.mark.parametrize("steps", [0.0, 0.05, 0.5, 1.0, 7.0])
def test_warm_up_is_a_fraction_below_one_and_steps_from_there(steps: float) -> None:
    """Ours is handed to transformers as it is."""
    from transformers import TrainingArguments

    made = TrainingArguments(warmup_steps=TrainConfig.parse(warmup_steps=steps).warmup_steps, use_cpu=True)
    assert made.get_warmup_steps(33) == (math.ceil(33 * steps) if steps < 1 else int(steps))


@pytest.mark.parametrize(
    "text", ["{{workflow.name}}", "{{{{=x}}}}", "{{{", "\\{{", "$(HF_TOKEN)", "\\$(X)", "a{b}$", '"{{"']
)
def test_options_reach_a_step_without_what_others_would_replace(text: str) -> None:
    """Argo evaluates {{...}}, and Kubernetes replaces $(...)."""
    options = {"evaluate_model": {"baseline_messages": [{"role": "system", "content": text}]}}
    written = json_text(options)
    assert "{{" not in written and "$(" not in written
    assert json.loads(written) == options
