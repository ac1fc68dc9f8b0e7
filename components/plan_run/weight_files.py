"""What a base's files hold, compared with what its config.json describes; only their headers are read."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import (
    base_model,
    base_weights,
    parameter_names,
    published_quantization,
)
from qlora_pipelines.components.plan_run.architecture import Architecture

_EXPERT = re.compile(r"\.experts\.\d+\.")
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a base by name, and the sizes in bytes of the files that hold them.

    Where the base is published with quantised weights, tensors and `sizes` are those of the copy in 16 bit that
    stage_base_model makes; `published` are the sizes of the files that it is made of, else the same as `sizes`.
    """

    shapes: Shapes
    sizes: tuple[int, ...]
    published: tuple[int, ...] = ()
    quantised: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes)


def read(name: str, revision: str, quantised: Mapping[str, Any] = {}) -> Weights:
    """Reads the headers of all of a base's weight files.

    Args:
        name: folder, s3:// prefix or Hugging Face id.
        revision: a commit, where it is on the hub.
        quantised: what its config.json says of quantised weights.

    Raises:
        InputError: a file is torn, missing, or not safetensors; or its weights are quantised in a way that cannot be
            undone here.
    """
    tensors = base_weights.read(name, revision)
    files = dict.fromkeys(tensor.file for tensor in tensors.values())
    sizes = tuple(file.size for file in files)
    if not quantised:
        return Weights({name: tensor.shape for name, tensor in tensors.items()}, sizes, sizes)
    try:
        restored = published_quantization.restored(tensors, quantised)
    except published_quantization.UnreadableFormat as error:
        made_from = base_model.origin(name, revision)
        raise InputError(published_quantization.refusal(name, error, made_from)) from None
    made = dict.fromkeys(files, 0)
    for tensor in restored.values():
        made[tensor.source.file] += tensor.size
    method = published_quantization.check_method(quantised)
    return Weights({name: tensor.shape for name, tensor in restored.items()}, tuple(made.values()), sizes, method)


def unmergeable(folder: Path, shapes: Shapes, base: Architecture) -> str:
    """Why the merge could not put what was trained into a base's files; empty: it can.

    Args:
        folder: has the base's config.json.
        shapes: of the tensors in the files.
        base: with the adapter that it gets.
    """
    needed = base.adapted | {weight.name for weight in base.weights if weight.quantised}
    # Of a large mixture of experts nearly all tensors are experts' own, and it takes long to go through their names.
    tensors = [name for name in shapes if not _EXPERT.search(name)] if not any(map(_EXPERT.search, needed)) else shapes
    names = parameter_names.read(folder, tensors)
    shared = {name for name in needed if name in names.tied}
    missing = sorted(needed - names.tensors.keys() - shared)
    if not missing:
        return ""
    made_of = names.converted.get(missing[0], [])
    reason = f"transformers makes it of {len(made_of)} tensors" if made_of else "the files have no tensor for it"
    return f"{missing[0]} cannot be merged, as {reason} ({len(missing)} of {len(needed)} layers)"


def compare(shapes: Shapes, model: Any) -> tuple[str, str]:
    """Whether files hold the parameters that the base's config.json describes.

    Names are compared as transformers has them. It renames and joins those of some architectures while it loads, so
    a missing name is certainly a fault only where the files hold no name that is unknown.

    Args:
        shapes: of the tensors in the files.
        model: the base without data.

    Returns:
        `fatal`, `warning` or `ok`, and what was found.
    """
    known = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    for name, shape in shapes.items():
        if name in known and known[name] != shape:
            return "fatal", f"{name} is of shape {list(shape)} in the files, but {list(known[name])} by config.json"
    same: dict[int, list[str]] = {}  # tied parameters are one, stored under any of their names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    missing = [names[0] for names in same.values() if not any(name in shapes for name in names)]
    unknown = [name for name in shapes if name not in known]
    if not missing:
        return "ok", f"the files hold all {len(same)} parameters of config.json"
    found = f"the files hold no {missing[0]}, which config.json describes ({len(missing)} of {len(same)} are missing)"
    if not unknown:
        return "fatal", found
    return "warning", f"{found}, but {unknown[0]}; transformers may rename it while it loads"
