"""Keys by content: what a run will make, named before any work is done.

    data_digest   what is at the data's address (paths, sizes, hashes)
    data_key      data_digest + preparation options + tokenizer
    training_key  base_revision + data_key + training options, number of processes included
    merge_key     training_key + merge options

`plan_run` and a trigger compute them alike. The same key means the same result, so finished work is found by it.

An evaluation depends on what others registered, so its key is known once there is something to judge. The work is in a
folder of the training_key or merge_key of what it judges:

    evaluation_key  dataset_digest + base_revision + evaluation options + digest of the model's manifest
                    + digest of the champion, or where the merged model is judged of the tuned scores
"""

import hashlib
import json
from typing import Any, NamedTuple

from qlora_pipelines.components.core.config.base import StepConfig
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import EvaluateConfig, MergeConfig, PrepareConfig, TrainConfig

FORMAT = 3
"""Raise it when the same inputs would give another result than before, or when an option's name changes.

1: version 0.1. 2: options are named as in transformers; the keys hash their names too. 3: marks of turns and rows are
obeyed, and a token at the border of prompt and answer is supervised; the first step of training has a learning rate;
the merged model has the base's files, and all tokens that end an answer; nulls of Parquet's structs are left out, those
of JSON stay; near duplicates are found otherwise; `all-linear` and 4 bit leave out routers and what does not read text,
mixtures of experts get other adapters, and `auto` in `packing` is decided first.
"""


EVALUATION_FORMAT = 2
"""Raise it when the same evaluation would give other figures, another verdict or another report than before.

2: a generated answer is compared with the trained text, both without their thoughts; generation stops at all tokens
that end an answer.
"""


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _key(kind: str, config: StepConfig, **parts: Any) -> str:
    return digest({"kind": kind, "format": FORMAT, "config": config.key_fields(), **parts})


def data_key(data_digest: str, config: PrepareConfig, tokenizer_digest: str) -> str:
    """Names what prepare_dataset will make."""
    return _key("data", config, data_digest=data_digest, tokenizer=tokenizer_digest)


def training_key(base_revision: str, data: str, config: TrainConfig) -> str:
    """Names the adapter that train_qlora will make."""
    return _key("training", config, base_revision=base_revision, data=data)


def merge_key(training: str, config: MergeConfig) -> str:
    """Names the model that dequantize_and_merge will make."""
    return _key("merge", config, training=training)


def evaluation_key(
    config: EvaluateConfig, *, dataset_digest: str, side: str, base_revision: str, model_digest: str, compared_with: str
) -> str:
    """Names what evaluate_model will find out.

    Args:
        config: the step's options.
        dataset_digest: of the prepared data.
        side: of the data set that the rows are from.
        base_revision: of the base that an adapter is loaded on; '' for a merged model.
        model_digest: sha256 of the manifest of the adapter or merged model that is judged.
        compared_with: digest of the champion (`Champion.digest`), or of the tuned scores (`scores_digest`); '' is none.
    """
    return _key(
        "evaluation",
        config,
        evaluation_format=EVALUATION_FORMAT,
        dataset_digest=dataset_digest,
        side=side,
        base_revision=base_revision,
        model_digest=model_digest,
        compared_with=compared_with,
    )


def scores_digest(files: dict[str, str]) -> str:
    """Names the scores that a merged model is compared with, by the content of their files (`sha256:...`)."""
    return digest({"scores": files})


class RunKeys(NamedTuple):
    """The keys of a whole run."""

    data_key: str
    training_key: str
    merge_key: str


def of_run(config: RunConfig, *, base_revision: str, data_digest: str, tokenizer_digest: str) -> RunKeys:
    """The keys of a run whose base, data and tokenizer are resolved."""
    data = data_key(data_digest, config.for_step("prepare_dataset"), tokenizer_digest)
    training = training_key(base_revision, data, config.for_step("train_qlora"))
    return RunKeys(data, training, merge_key(training, config.for_step("dequantize_and_merge")))
