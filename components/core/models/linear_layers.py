"""Which layers are linear: the one rule for what gets an adapter and what is held in 4 bit, for all steps alike.

A layer is linear if it is of torch's class, or of one that computes the same. Routers whose class derives from it
return tuples, and grouped layers multiply by parts of it. Six kinds are linear, and yet neither adapted nor quantised:

- The head, and what is tied to it or to the embeddings, as transformers leaves them.
- All that reads something else than text. It is not run in training on text, so an adapter there would stay at nothing,
  and 4 bit would only round it.
- Layers whose weight is used other than by calling them: code that reads 4-bit codes as numbers fails or is wrong, and
  passes by an adapter.
- Layers that share their weight with another, as in Zamba2: a merged weight can hold one adapter, not two.
- Layers that transformers joins of several of a checkpoint's tensors, or splits out of one: merging changes tensors of
  the checkpoint, each by itself.
- Routers, unless they are named: they are small, and rounding sends tokens to other experts.

A layer whose rows end inside a block of 4-bit values is adapted and not quantised: see `ragged`.
"""

import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

from qlora_pipelines.components.core.models.blockwise_quantization import BLOCK
from qlora_pipelines.components.core.runtime import load_libraries

SAME_AS_LINEAR = {"Linear4bit", "FalconLinear"}
"""Classes that derive from torch's and compute what it does: bitsandbytes', and one of transformers."""
ROUTER = re.compile(r"(^|\.)(gate|shared_expert_gate|\w*router|indexer)(\.|$)")
"""In the name of a router, also of one that picks tokens for sparse attention, or of a layer in it."""
OTHER_CONFIGS = {"vision_config", "audio_config"}
OTHER_INPUTS = re.compile(r"(^|[._])(vision|visual|image|audio)(_|$)")
"""In the name of a module that reads something else than text."""
NOT_FORWARD = {"__init__", "reset_parameters"}
ONLY_IF_ASKED = {"BloomAttention", "BloomMLP"}
"""Classes that use weights directly only with an option that no published model has set (`slow_but_exact`)."""
_USED = re.compile(r"self\.(\w+)\.weight\b(?!\.device)")


def head(model: Any) -> Any:
    """The output embeddings; where a class does not know them, as that of Nemotron H Omni, those of the model in it."""
    from transformers import PreTrainedModel

    inside = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    return next((found for module in inside if (found := module.get_output_embeddings()) is not None), None)


def language_part(model: Any) -> Any:
    """The part of a model that text goes through; all of it where the model knows nothing but text."""
    return model if model.config.get_text_config() is model.config else model.get_decoder()


def has_other_inputs(config: Any) -> bool:
    """Whether a config is that of a model that takes images or sound next to text."""
    return config.get_text_config() is not config or bool(OTHER_CONFIGS & set(getattr(config, "sub_configs", {})))


def not_language(model: Any) -> set[str]:
    """The parameters and buffers of a model that text does not go through."""
    if not has_other_inputs(model.config):
        return set()
    used = _text_modules(model) | {id(head(model))}
    return {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if id(module) not in used
        for key in (*module._parameters, *module._buffers)
    }


def named(model: Any) -> list[str]:
    """The layers that an adapter may be put on, routers included, by name."""
    own_head, inside = head(model), _text_modules(model)
    shared = {weight.removesuffix(".weight") for pair in model.all_tied_weights_keys.items() for weight in pair}
    left = shared | set(used_directly(model)) | converted(model)
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not own_head and id(module) in inside and name not in left
    ]


def adapted(model: Any) -> list[str]:
    """The layers that `all-linear` means, by name."""
    refused = _refused_by_peft(model)
    return [name for name in named(model) if not ROUTER.search(name) and name.rpartition(".")[2] not in refused]


def quantised(model: Any) -> list[str]:
    """The layers that training holds in 4 bit, by name; of a model that is not quantised yet."""
    import torch
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = kept(model)
    return [
        name
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
    ]


def kept(model: Any) -> list[str]:
    """The modules that stay in 16 bit, as transformers takes them in `llm_int8_skip_modules`.

    Args:
        model: without an adapter, not quantised; its weights may be on the meta device.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    inside = _text_modules(model) - {id(head(model))}
    linear = {name: module for name, module in model.named_modules() if is_linear(module)}
    left = set(used_directly(model)) | converted(model)
    left |= {name for name, module in linear.items() if id(module) not in inside or ROUTER.search(name)}
    left |= {name for name, module in linear.items() if ragged(module)}
    return sorted({*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or []), *_shortened(left, linear)})


def is_linear(module: Any) -> bool:
    """Whether a module computes W x + b of its input, and nothing else."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return type(module) in (torch.nn.Linear, Conv1D) or type(module).__name__ in SAME_AS_LINEAR


def ragged(module: Any) -> bool:
    """Whether a row of a linear layer's weight ends inside a block of values that share a scale in 4 bit.

    bitsandbytes 0.50's kernel for CPUs takes a wrong scale there.
    """
    return bool(_shape(module)[1] % BLOCK)


def _shape(module: Any) -> tuple[int, ...]:
    """Outputs and inputs of a linear layer, whatever the shape that its weight is held in."""
    return (module.out_features, module.in_features) if hasattr(module, "out_features") else (module.nf, module.nx)


def used_directly(model: Any) -> Iterator[str]:
    """The layers whose weight the code of the module around them uses, by name."""
    for name, module in model.named_modules():
        cls: Any = type(module)
        for attribute in _uses(cls):
            if is_linear(getattr(module, attribute, None)):
                yield f"{name}.{attribute}".lstrip(".")


def converted(model: Any) -> set[str]:
    """The linear layers that transformers joins or splits while it loads a checkpoint, by name.

    It has the way back, for saving: a weight that it finds nothing to do with comes out as the same tensor.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    load_libraries("transformers.modeling_layers", "transformers.conversion_mapping")
    weights = {
        f"{name}.weight": torch.empty(_shape(module), device="meta")
        for name, module in model.named_modules()
        if is_linear(module)
    }
    same = {id(tensor) for tensor in revert_weight_conversion(model, weights).values()}
    return {name.removesuffix(".weight") for name, tensor in weights.items() if id(tensor) not in same}


@functools.cache
def _uses(cls: Any) -> frozenset[str]:
    """The attributes whose weight a class of transformers uses, in its own code or in that of a class above it."""
    found: set[str] = set()
    for owner in cls.__mro__:
        if not owner.__module__.startswith("transformers.") or owner.__name__ in ONLY_IF_ASKED:
            continue
        for name, member in vars(owner).items():
            function = inspect.unwrap(member) if callable(member) else None
            if inspect.isfunction(function) and name not in NOT_FORWARD:
                found.update(_USED.findall(inspect.getsource(function)))
    return frozenset(found)


def _refused_by_peft(model: Any) -> set[str]:
    """Last names of layers that peft puts no adapter on: Mamba's kernels take their weights and do not call them."""
    import types

    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    refused, config = set(), LoraConfig()
    for kind in {model.config.model_type, model.config.get_text_config().model_type}:
        stand_in = types.SimpleNamespace(config=types.SimpleNamespace(model_type=kind))
        for name in ("out_proj", "conv1d"):
            try:
                _check_lora_target_modules_mamba(config, stand_in, name)
            except ValueError:
                refused.add(name)
    return refused


def _text_modules(model: Any) -> set[int]:
    """The modules that text goes through, by id: without the layers that look at an image, as in Mllama.

    Where the text has no config of its own, as in GIT, only their names tell the others.
    """
    part = language_part(model)
    inside = {id(module) for module in part.modules()}
    if has_other_inputs(model.config):
        for name, module in part.named_modules():
            if "CrossAttention" in type(module).__name__ or (part is model and OTHER_INPUTS.search(name)):
                inside -= {id(below) for below in module.modules()}
    return inside


def _shortened(names: Iterable[str], all_names: Iterable[str]) -> set[str]:
    """The fewest modules that hold all `names` and none of the other linear layers."""
    wanted = set(names)
    others = [name for name in all_names if name not in wanted]
    holds_others = {name[: dot.start()] for name in others for dot in re.finditer(r"\.", name)}
    found = set()
    for parts in (name.split(".") for name in wanted):
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        found.add(next(prefix for prefix in prefixes if prefix not in holds_others))
    return found
