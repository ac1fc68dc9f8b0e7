"""The LoRA adapter that a run's options ask for."""

from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError


def config(train: TrainConfig, model: Any) -> Any:
    """Peft's LoraConfig for a model, with each name checked to be in it.

    Args:
        train: the training options.
        model: the base, with or without data.

    Raises:
        InputError: a target or a module to save that the model does not have.
    """
    import torch
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    modules = [name for name, _ in model.named_modules() if name]
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]
    targets: str | list[str] = train.target_modules
    if targets != "all-linear":
        targets = _matching("target_modules", train.target_modules, "linear layer", linear)
        if not targets:
            raise InputError("target_modules names no layer; give names separated by commas, or all-linear")
    return LoraConfig(
        r=train.lora_r,
        # peft scales the adapter's product by alpha / r, with rsLoRA by alpha / sqrt(r): 2 and 2 sqrt(r) by default.
        lora_alpha=train.lora_alpha or 2 * train.lora_r,
        lora_dropout=train.lora_dropout,
        use_rslora=train.use_rslora,
        use_dora=train.use_dora,
        target_modules=targets,
        modules_to_save=_matching("modules_to_save", train.modules_to_save, "module", modules) or None,
        task_type="CAUSAL_LM",
    )


def _matching(option: str, names: str, kind: str, modules: list[str]) -> list[str]:
    """The names in an option, separated by commas; each must end the full name of a module, as peft matches them."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(f".{module}".endswith(f".{name}") for module in modules):
            known = ", ".join(sorted({module.rsplit(".", 1)[-1] for module in modules}))
            raise InputError(f"{option}: {name} matches no {kind}; this model has {known}")
    return wanted
