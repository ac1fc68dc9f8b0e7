"""Bases that are published in FP8 or MXFP4: what their tensors are in 16 bit.

QLoRA quantises 16-bit weights to NF4 itself, so a base that is quantised already is brought back to 16 bit first. Of
these two formats that is a product of what is stored, rounded once to bfloat16. Formats whose codes stand for more than
that (GPTQ, AWQ, bitsandbytes, NVFP4) are not read here.

FP8: each value times a scale, which is one for the tensor, for a row or for a block of rows and columns. DeepSeek and
Qwen call it `<weight>_scale_inv`, compressed-tensors, FBGEMM and ModelOpt `<weight>_scale`; all of them multiply by it.

MXFP4 (OCP Microscaling Formats 1.0, section 5.3), as gpt-oss has its experts: `<weight>_blocks` of two 4-bit codes per
byte, the first in the low half, and `<weight>_scales` of one power of two for each 32 values.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models.safetensors_files import FLOATS, ITEM_BYTES, Stored

KEY = "quantization_config"
METHODS = {"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "mxfp4"}
"""What a config.json names whose weights may be in FP8 or MXFP4; the weights themselves tell."""
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""Torch's names of the dtypes of FP8 weights."""
SCALES = ("_scale_inv", "_scale")
EXPONENTS = ("U8", "F8_E8M0")
"""Dtypes of scales that are powers of two: a byte e stands for 2^(e - 127)."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the codes 0 to 7 of FP4 stand for; 8 to 15 are the same, negative (OCP Microscaling Formats 1.0, table 5)."""
BLOCKS = "_blocks", "_scales"
PACKED = 16
"""Bytes of a block of MXFP4: 32 values."""
CODES = {"U8", "I8", "U16", "I16", "U32", "I32"}
"""Dtypes in which other formats pack their codes."""
ACTIVATIONS = (
    "input_scale",
    "input_scale_ub",
    "activation_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "input_global_scale",
    "output_scale",
)
"""Scales of what flows between layers, for kernels that compute in FP8; the weights do not depend on them."""
ROWS = 256
"""Rows of an expert whose codes are looked up at a time: what that takes is 16 bytes a value."""
READ = 1 << 22
"""Bytes read at a time, or one row (one expert) where that is more."""


class UnreadableFormat(ValueError):
    """Why a base's weights cannot be brought back to 16 bit."""


def refusal(name: str, why: object, made_from: str = "") -> str:
    """What to tell people about a base in another format.

    Args:
        name: of the base.
        why: the method, or what `UnreadableFormat` says.
        made_from: the 16-bit model, if it is known.
    """
    return (
        f"base model {name}: its weights are quantised ({why}), and only FP8 and MXFP4 can be brought back to 16 bit;"
        f" give the 16-bit model {made_from or 'that it was made from'}"
    )


def check_method(config: Mapping[str, Any]) -> str:
    """The method that a config.json names.

    Args:
        config: as `config_of` gives it; empty: not quantised.

    Raises:
        UnreadableFormat: its weights are in another format than those read here.
    """
    method = str(config.get("quant_method", "method unknown"))
    if config and method not in METHODS:
        raise UnreadableFormat(method)
    return method


@dataclasses.dataclass(frozen=True)
class Restored:
    """A tensor of the 16-bit model, and what of the published files it is made of.

    Attributes:
        name: as transformers knows it.
        dtype: in the file that is written.
        shape: of the tensor.
        source: the codes; where there is no scale, the tensor itself.
        scale: its scales, or None.
        block: rows and columns that share a scale, where the files' shapes do not tell.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Stored
    scale: Stored | None = None
    block: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def pieces(self) -> list[tuple[int, int]]:
        """First and last row (not included) of each piece to read."""
        return self.source.row_ranges(READ)

    def read(self, first: int, last: int, scale: Any) -> Any:
        """The bytes of rows `first` to `last` (not included) as they are written; `scale` is what `scales` gave.

        Raises:
            InputError: a value is not finite.
        """
        import torch

        if scale is None:
            return self.source.read(first, last)
        codes = torch.frombuffer(self.source.read(first, last), dtype=torch.uint8)
        if self.source.dtype in FP8:
            shape = (last - first, *self.shape[1:])
            values = codes.view(getattr(torch, FP8[self.source.dtype])).view(shape).to(torch.float32)
            values = values * _spread(scale, self.shape, self.block, first, last)
        else:
            values = _mxfp4(codes.view(last - first, *self.source.shape[1:]), scale[first:last])
        values = values.to(torch.bfloat16)
        if not values.isfinite().all():
            raise InputError(f"{self.source.file.uri}: {self.source.name} has values that are not finite")
        return values.contiguous().view(-1).view(torch.uint8).numpy()

    def scales(self) -> Any:
        """The scales as float32, of MXFP4 as exponents; None where there are none."""
        import torch

        if self.scale is None:
            return None
        if self.scale.dtype not in EXPONENTS:
            return self.scale.tensor().to(torch.float32)
        data = self.scale.read(0, self.scale.rows)
        exponents = torch.frombuffer(data, dtype=torch.uint8).to(torch.int32).view(self.scale.shape) - 127
        return exponents if self.source.dtype not in FP8 else torch.ldexp(torch.ones(()), exponents)


def config_of(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says of how its weights are quantised; empty: they are not."""
    try:
        return described((folder / "config.json").read_bytes())
    except OSError:
        return {}  # whoever reads it for its content says what is wrong


def described(content: bytes) -> dict[str, Any]:
    """As `config_of`, of the content of a config.json.

    In a model of several parts the part that reads text may say it.
    """
    try:
        config = json.loads(content)
    except ValueError:
        return {}  # as above
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    found = (part[KEY] for part in parts if isinstance(part, dict) and isinstance(part.get(KEY), dict))
    return next(found, {})


def without(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of the same model in 16 bit."""
    kept = {key: value for key, value in config.items() if key != KEY}
    return {key: without(value) if isinstance(value, dict) else value for key, value in kept.items()}


def restored(tensors: dict[str, Stored], config: Mapping[str, Any]) -> dict[str, Restored]:
    """The tensors of the 16-bit model, in the order of the published ones; only headers are looked at.

    Args:
        tensors: of the published files, by name.
        config: as `config_of` gives it.

    Raises:
        UnreadableFormat: a weight is in a format that is not read here.
    """
    method = check_method(config)
    taken: set[str] = set()
    found: dict[str, Restored] = {}
    for name, stored in tensors.items():
        if name.endswith(BLOCKS[0]) and (scale := tensors.get(name.removesuffix(BLOCKS[0]) + BLOCKS[1])):
            made = _of_mxfp4(stored, scale, method)
        elif stored.dtype in FP8:
            scale = next((tensors[name + end] for end in SCALES if name + end in tensors), None)
            made = _of_fp8(stored, scale, config, method)
        else:
            continue
        taken |= {name, made.scale.name if made.scale else ""}
        found[name] = made
    made_of_all: dict[str, Restored] = {}
    for name, stored in tensors.items():
        if name in found:
            made_of_all[found[name].name] = found[name]
        elif name not in taken and not name.endswith(ACTIVATIONS):
            if stored.dtype in CODES and math.prod(stored.shape) > 1:
                raise UnreadableFormat(f"{method}: {name} is {stored.dtype}")
            made_of_all[name] = Restored(name, stored.dtype, stored.shape, stored)
    return made_of_all


def _of_fp8(stored: Stored, scale: Stored | None, config: Mapping[str, Any], method: str) -> Restored:
    if scale is None or scale.dtype not in (*FLOATS, *EXPONENTS):
        raise UnreadableFormat(f"{method}: {stored.name} is {stored.dtype} without a scale that is known here")
    made = Restored(stored.name, "BF16", stored.shape, stored, scale, _block(config))
    try:
        _sizes(scale.shape, stored.shape, made.block)
    except ValueError:
        raise UnreadableFormat(
            f"{method}: {scale.name} has shape {list(scale.shape)}, and its weight {list(stored.shape)}"
        ) from None
    return made


def _of_mxfp4(stored: Stored, scale: Stored, method: str) -> Restored:
    shape = stored.shape
    if len(shape) != 4 or shape[3] != PACKED or scale.shape != shape[:3] or {stored.dtype, scale.dtype} != {"U8"}:
        raise UnreadableFormat(f"{method}: {stored.name} has shape {list(shape)} and {stored.dtype}")
    experts, rows, blocks, _ = shape
    # Published as (experts, out, in), and transformers has experts as (experts, in, out).
    return Restored(stored.name.removesuffix(BLOCKS[0]), "BF16", (experts, blocks * 2 * PACKED, rows), stored, scale)


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block as the config says it: of DeepSeek's form, or of compressed-tensors'."""
    groups = config.get("config_groups")
    weights = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, dict) else []
    for given in (config.get("weight_block_size"), *(group.get("block_structure") for group in weights)):
        if isinstance(given, list) and len(given) == 2:
            return int(given[0]), int(given[1])
    return None


def _sizes(scale: tuple[int, ...], shape: tuple[int, ...], block: tuple[int, int] | None) -> Iterator[int]:
    """By dimension of a weight, how many values in a row share a scale.

    Raises:
        ValueError: the scales do not fit the weight.
    """
    if math.prod(scale) == 1:
        return iter(shape)
    padded = (*scale, *[1] * (len(shape) - len(scale)))
    by_config = (*[1] * (len(shape) - 2), *(block or (0, 0)))
    found = []
    for length, scales, configured in zip(shape, padded, by_config, strict=True):
        if scales == 1 or length % scales == 0:
            size = length // scales
            found.append(configured if configured and math.ceil(length / configured) == scales else size)
        elif configured and math.ceil(length / configured) == scales:
            found.append(configured)
        else:
            raise ValueError
    return iter(found)


def _spread(scale: Any, shape: tuple[int, ...], block: tuple[int, int] | None, first: int, last: int) -> Any:
    """The scale of each value of rows `first` to `last`, of a shape that broadcasts to theirs."""
    import torch

    sizes = _sizes(tuple(scale.shape), shape, block)
    scale = scale.reshape(*scale.shape, *[1] * (len(shape) - scale.dim())) if scale.numel() > 1 else scale.view(1)
    for dimension, (length, size) in enumerate(zip(shape, sizes, strict=True)):
        if scale.dim() == len(shape) and scale.shape[dimension] > 1:
            places = torch.arange(first, last) if dimension == 0 else torch.arange(length)
            scale = scale.index_select(dimension, places // size)
    return scale


def _mxfp4(blocks: Any, exponents: Any) -> Any:
    """Values of experts, of shape (experts, in, out).

    Args:
        blocks: pairs of codes, of shape (experts, out, blocks, 16).
        exponents: of shape (experts, out, blocks).
    """
    import torch

    values = torch.tensor([*E2M1, *(-value for value in E2M1)])
    experts, rows, many, _ = blocks.shape
    made = torch.empty(experts, many * 2 * PACKED, rows, dtype=torch.bfloat16)
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        codes = blocks[:, part].int()
        pairs = torch.stack([values[codes & 15], values[codes >> 4]], dim=-1)
        scaled = torch.ldexp(pairs.flatten(-2), exponents[:, part].unsqueeze(-1))
        made[:, :, part] = scaled.flatten(-2).transpose(1, 2)
    return made
