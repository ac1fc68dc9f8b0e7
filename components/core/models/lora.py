"""The LoRA adapter that a run's options ask for."""

from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading


def config(train: TrainConfig, model: Any) -> Any:
    """Peft's LoraConfig for a model, with each name checked to be in it.

    Args:
        train: the training options.
        model: the base, with or without data.

    Raises:
        InputError: a target or a module to save that the model does not have.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=train.lora_r,
        lora_alpha=train.lora_alpha or 2 * train.lora_r,
        lora_dropout=train.lora_dropout,
        use_rslora=train.use_rslora,
        use_dora=train.use_dora,
        target_modules=loading.check_targets(train.target_modules, linear_layers(model)),
        modules_to_save=_modules_to_save(train.modules_to_save, model),
        task_type="CAUSAL_LM",
    )


def linear_layers(model: Any) -> list[str]:
    """Names of the linear layers an adapter can go on, the head left out."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]


def _modules_to_save(names: str, model: Any) -> list[str] | None:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
    for name in wanted:
        if name not in known:
            raise InputError(f"modules_to_save: {name} is no module of this model; it has {', '.join(sorted(known))}")
    return wanted or None
