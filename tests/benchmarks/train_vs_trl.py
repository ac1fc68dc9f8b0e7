"""Training speed against TRL's trainer, in supervised tokens a second, as a ratio.

    python -m tests.benchmarks.train_vs_trl

The same model, rows and adapter for all, each in a process of its own: 320 rows, LoRA of rank 16 on all linear layers,
bfloat16, 20 optimiser steps. The peers: TRL as the usual script has it (batch of 4, max_length 512, its default
gradient checkpointing), and TRL at its best here (packing to 1024, no gradient checkpointing). BENCH_DATA names rows
to take instead of the demo's.
"""

import json
import sys
import tempfile
import time
from typing import Any

from peft.helpers import disable_input_dtype_casting
from transformers import set_seed

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.data import chat_template, packing
from qlora_pipelines.components.core.models import loading, packed_attention
from qlora_pipelines.components.core.runtime import quiet_libraries
from qlora_pipelines.components.train_qlora import training
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints
from qlora_pipelines.components.train_qlora.mlflow_run import MlflowRun
from tests.benchmarks import measure as memory
from tests.benchmarks import rows as rows_of
from tests.benchmarks.measure import MODEL

ROWS, MAX_LENGTH, STEPS = 320, 512, 20
PRODUCTS = ("aten::mm", "aten::addmm", "aten::mkldnn_linear")


def ours() -> float:
    """Supervised tokens a second of train_qlora's own loop, with its log lines, once it is set up."""
    trainer = our_trainer()
    started = time.monotonic()
    with disable_input_dtype_casting(trainer.model):
        trainer.train()
    return float(trainer.supervised_tokens / (time.monotonic() - started))


def floor() -> float:
    """Share of our steps' time that goes into matrix products, which no packing and no head can save.

    Self time of the operators on the CPU, from PyTorch's profiler; attention's products, batched ones, are not counted.
    """
    import torch

    trainer = our_trainer(max_steps=4)
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        disable_input_dtype_casting(trainer.model),
    ):
        trainer.train()
    spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return float(sum(spent.get(name, 0) for name in PRODUCTS) / sum(spent.values()))


def our_trainer(rows: int = ROWS, **options: Any) -> Any:
    """The trainer of train_qlora on the first rows, with its log lines and without its checkpoints."""
    training._limit_caches()
    config = TrainConfig(**{"max_steps": STEPS, "batch_tokens": 1024} | options)
    set_seed(config.seed)
    model = loading.load_quantized(MODEL)
    packed_attention.enable(model)
    scratch = tempfile.mkdtemp()
    packed = packing.rows(rows_of.encoded(0, rows, MAX_LENGTH), config.batch_tokens)
    steps = config.max_steps or len(packed)
    trainer = training._trainer(config, model, loading.load_tokenizer(MODEL), packed, steps, scratch)
    job = training.Job(config, "", "", "", "", "", "", scratch, "", Checkpoints(scratch, 1), None, 0, 0)
    training._watch(trainer, job, steps, 0, MlflowRun("", {}, muted=True))
    return trainer


BEST: dict[str, Any] = {"packing": True, "max_length": 1024, "gradient_checkpointing": False}
"""TRL at its best here."""
USUAL: dict[str, Any] = {"max_length": MAX_LENGTH, "per_device_train_batch_size": 4}


def trl_trainer(rows: int = ROWS, **settings: Any) -> tuple[Any, list[int]]:
    """TRL's trainer on the same rows, and a list that the supervised tokens of each batch are added to."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    data = [{"input_ids": item.input_ids, "labels": item.labels} for item in rows_of.encoded(0, rows, MAX_LENGTH)]
    common = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    trainer = SFTTrainer(
        model=loading.load_quantized(MODEL),
        args=SFTConfig(output_dir=tempfile.mkdtemp(), **common | settings),
        train_dataset=Dataset.from_list(data),
        processing_class=loading.load_tokenizer(MODEL),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    seen, collate = [], trainer.data_collator

    def counting(batch: Any) -> Any:
        inputs = collate(batch)
        seen.append(int((inputs["labels"][:, 1:] != chat_template.IGNORED).sum()))
        return inputs

    trainer.data_collator = counting
    return trainer, seen


def trl(settings: dict[str, Any]) -> float:
    """Supervised tokens a second of TRL's trainer."""
    trainer, seen = trl_trainer(**settings)
    started = time.monotonic()
    trainer.train()
    return sum(seen[:STEPS]) / (time.monotonic() - started)


VARIANTS = {"ours": ours, "trl": lambda: trl(USUAL), "trl_packed": lambda: trl(BEST), "floor": floor}


def measure() -> dict[str, float]:
    """Runs all, and returns the two ratios, the figures behind them, and the share of matrix products."""
    found = {}
    for name in VARIANTS:
        output, _ = memory.run([sys.executable, "-m", "tests.benchmarks.train_vs_trl", name])
        found[name] = float(output.split()[-1])
    return {
        "train_vs_trl": found["ours"] / found["trl"],
        "train_vs_trl_packed": found["ours"] / found["trl_packed"],
        "train_floor_share": found.pop("floor"),
        **{f"train_{name}_supervised_tokens_per_s": value for name, value in found.items()},
    }


if __name__ == "__main__":
    quiet_libraries()
    print(VARIANTS[sys.argv[1]]() if len(sys.argv) > 1 else json.dumps(measure(), indent=1))
