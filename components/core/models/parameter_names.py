"""What transformers calls a checkpoint's tensors once they are loaded, and what it makes of them.

An adapter and the record of training speak of parameters in memory. transformers 5 renames some tensors when it loads
them, and fuses or splits others; its own mapping says which.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.models import linear_layers, loading
from qlora_pipelines.components.core.models.safetensors_files import Stored
from qlora_pipelines.components.core.runtime import load_libraries


@dataclasses.dataclass(frozen=True)
class Names:
    """A model's parameters and the tensors of its checkpoint."""

    tensors: dict[str, str]
    """The tensor that becomes a parameter as it is, by the parameter's name."""
    converted: dict[str, list[str]]
    """The tensors that transformers fuses, splits or turns into a parameter, by the parameter's name."""
    tied: dict[str, str]
    """The parameter that another one is the same as, by the other one's name; as the config says it."""
    transposed: frozenset[str]
    """Weights that a checkpoint holds as (in, out): those of Conv1D layers, as in GPT-2."""
    full_precision: frozenset[str]
    """The tensors that transformers loads in float32, whatever is asked for."""
    not_language: frozenset[str]
    """The tensors of what takes images or sound, which training on text leaves alone."""
    head: str
    """The parameter of the output embeddings."""
    embeddings: str
    """The parameter of the input embeddings."""
    head_tensor: str
    """What a checkpoint calls the head."""

    def shapes(self, base: dict[str, Stored]) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters that are tensors of the base, linear layers' as (out, in)."""
        shapes = {parameter: base[tensor].shape for parameter, tensor in self.tensors.items()}
        shapes |= {parameter: shapes[parameter][::-1] for parameter in self.transposed if parameter in shapes}
        return shapes | {target: shapes[source] for target, source in self.tied.items() if source in shapes}


def read(folder: Path, tensors: Iterable[str]) -> Names:
    """Names of a model's parameters, from its config alone.

    Args:
        folder: has the model's config.json.
        tensors: the names in its checkpoint.

    Raises:
        InputError: transformers does not know this architecture.
    """
    load_libraries("transformers.modeling_layers", "transformers.conversion_mapping")
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.pytorch_utils import Conv1D

    model = loading.empty_model(folder)
    state = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    strict = "|".join(re.escape(name) for name in sorted(model._keep_in_fp32_modules_strict or []))
    others = linear_layers.not_language(model)
    plain: dict[str, str] = {}
    converted: dict[str, list[str]] = {}
    full_precision, not_language = set(), set()
    for tensor in tensors:
        name, pattern = rename_source_key(tensor, renamings, converters, model.base_model_prefix, state)
        if name not in state:
            continue  # transformers makes nothing of it
        if pattern is None:
            plain[name] = tensor
        else:
            converted.setdefault(name, []).append(tensor)
        if strict and re.search(rf"(^|\.)({strict})(\.|$)", name):
            full_precision.add(tensor)
        if name in others:
            not_language.add(tensor)
    module_names = {module: name for name, module in model.named_modules()}
    head = f"{module_names[linear_layers.head(model)]}.weight"
    return Names(
        tensors=plain,
        converted=converted,
        tied=dict(model.all_tied_weights_keys),
        transposed=frozenset(f"{name}.weight" for module, name in module_names.items() if isinstance(module, Conv1D)),
        full_precision=frozenset(full_precision),
        not_language=frozenset(not_language),
        head=head,
        embeddings=f"{module_names[model.get_input_embeddings()]}.weight",
        head_tensor=plain.get(head) or _saved_name(model, head),
    )


def _saved_name(model: Any, parameter: str) -> str:
    """What transformers would call a parameter in a checkpoint."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    (name,) = revert_weight_conversion(model, {parameter: torch.empty(0)})
    return str(name)
