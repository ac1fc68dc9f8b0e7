"""No step of training is without a learning rate, however few there are."""

import math
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import TrainConfig
from tests.components.conftest import TinyRun
from tests.components.train_qlora.test_task import train


def rates(steps: int, schedule: str, warmup: float) -> tuple[list[float], list[float]]:
    """The rate at each step as a share of the peak: the trainer's, and that of transformers' own schedule."""
    import torch
    from transformers import Trainer, TrainingArguments

    from qlora_pipelines.components.train_qlora.trainer import PackedTrainer

    found: tuple[list[float], list[float]] = ([], [])
    for kind, made in zip((PackedTrainer, Trainer), found, strict=True):
        trainer: Any = kind.__new__(kind)
        trainer.args = TrainingArguments(lr_scheduler_type=schedule, warmup_steps=warmup, use_cpu=True)
        trainer.lr_scheduler = None
        trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = trainer.create_scheduler(steps)
        for _ in range(steps):
            made.append(trainer.optimizer.param_groups[0]["lr"])
            trainer.optimizer.step()
            scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 0.05, 0.5, 0.99, 1, 5, 100])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_every_step_has_a_rate(schedule: str, warmup: float, steps: int) -> None:
    made, transformers_own = rates(steps, schedule, warmup)
    rise = math.ceil(steps * warmup) if warmup < 1 else int(warmup)
    assert all(0 < rate <= 1 for rate in made)
    assert made[:rise] == pytest.approx([(step + 1) / (rise + 1) for step in range(steps)][:rise])
    assert made[rise:] == pytest.approx(transformers_own[rise:])


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 1},
        {"max_steps": 1, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 50},
        {"batch_tokens": 8192, "gradient_accumulation_steps": 8},  # one row, in a step that wants eight
    ],
    ids=str,
)
def test_the_shortest_training_learns(
    options: dict[str, Any], tiny_run: TinyRun, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    config = TrainConfig(**{"batch_tokens": 1024, "learning_rate": 0.01} | options)
    result = train(tiny_run, tiny_model, tmp_path, config, str(options))
    assert result.steps == options.get("max_steps", 1)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)
    said = "warmup_steps is 50 and training has 1: the rate reaches 2% of learning_rate"
    warned = said in "".join(capsys.readouterr())
    assert warned == ("warmup_steps" in options)
