"""The LoRA adapter that a run's options ask for, and the one way all steps put an adapter on a model."""

import contextlib
from collections.abc import Iterator
from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import linear_layers

ALL = "all-linear"


def config(train: TrainConfig, model: Any) -> Any:
    """Peft's LoraConfig for a model, with each name checked to be in it.

    Args:
        train: the training options.
        model: the base, with or without data.

    Raises:
        InputError: a target or a module to save that the model does not have, or a model that generates no text.
    """
    from peft import LoraConfig

    if not hasattr(model, "prepare_inputs_for_generation"):
        raise InputError(
            f"{model.config.model_type} does not generate text token by token, which is what training teaches; give a"
            " causal language model"
        )
    modules = [name for name, _ in model.named_modules() if name]
    if train.target_modules == ALL:
        targets = linear_layers.adapted(model)
        if not targets:
            raise InputError(f"{model.config.model_type} has no linear layer that an adapter could be put on")
    else:
        linear = linear_layers.named(model)
        wanted = _matching("target_modules", train.target_modules, "linear layer", linear)
        if not wanted:
            raise InputError(f"target_modules names no layer; give names separated by commas, or {ALL}")
        targets = [layer for layer in linear if any(_ends(layer, name) for name in wanted)]
    return LoraConfig(
        r=train.lora_r,
        # peft scales the adapter's product by alpha / r, with rsLoRA by alpha / sqrt(r): 2 and 2 sqrt(r) by default.
        lora_alpha=train.lora_alpha or 2 * train.lora_r,
        lora_dropout=train.lora_dropout,
        use_rslora=train.use_rslora,
        use_dora=train.use_dora,
        target_modules=_shortest(targets, modules),
        modules_to_save=_matching("modules_to_save", train.modules_to_save, "module", modules) or None,
        task_type="CAUSAL_LM",
    )


def put_on(model: Any, lora_config: Any, **options: Any) -> Any:
    """A model with a new adapter on it, in place; `options` are those of peft's `get_peft_model`."""
    from peft import get_peft_model

    with targets_as_named():
        return get_peft_model(model, lora_config, **options)


def load(model: Any, folder: str) -> Any:
    """A model with a trained adapter on it, in place."""
    from peft import PeftModel

    with targets_as_named():
        return PeftModel.from_pretrained(model, folder)


def adapted_layers(model: Any) -> list[str]:
    """The layers of a model that have an adapter, by their names in the model without one."""
    from peft.tuners.lora import LoraLayer

    return [name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)]


@contextlib.contextmanager
def targets_as_named() -> Iterator[None]:
    """Within it, peft adapts the layers that a config names, and no others, and reads an adapter's tensors as named.

    peft 0.21 takes `gate_proj` of a mixture of experts for transformers 4's experts: it drops dense layers and shared
    experts of that name from the targets, and adapts the fused experts. It does so for `all-linear` and for full names
    too. It also renames an adapter's tensors as transformers renames a checkpoint's. An adapter that was saved from
    memory has the names of memory already: renamed twice, as in Mistral Large 4, shared experts' are not found, and
    stay as they began, without a word. It has no option against either, so the two functions are replaced, for the
    whole process.
    """
    from peft.utils import transformers_weight_conversion as conversion

    originals = conversion._convert_peft_config_moe, conversion.convert_peft_adapter_state_dict_for_transformers
    conversion._convert_peft_config_moe = lambda *_: None
    conversion.convert_peft_adapter_state_dict_for_transformers = lambda adapter_state_dict, **_: adapter_state_dict
    try:
        yield
    finally:
        conversion._convert_peft_config_moe, conversion.convert_peft_adapter_state_dict_for_transformers = originals


def _shortest(targets: list[str], modules: list[str]) -> list[str]:
    """The targets by their last names, as people know them, where no other module has that name; else in full."""
    wanted = set(targets)
    taken = {name.rpartition(".")[2] for name in modules if name not in wanted}
    lasts = {name: name.rpartition(".")[2] for name in targets}
    return sorted({name if last in taken else last for name, last in lasts.items()})


def _ends(module: str, name: str) -> bool:
    """Whether a name is the end of a module's full name, as peft matches them."""
    return f".{module}".endswith(f".{name}")


def _matching(option: str, names: str, kind: str, modules: list[str]) -> list[str]:
    """The names in an option, separated by commas; each must end the full name of a module."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(_ends(module, name) for module in modules):
            known = ", ".join(sorted({module.rsplit(".", 1)[-1] for module in modules}))
            raise InputError(f"{option}: {name} matches no {kind}; this model has {known}")
    return wanted
