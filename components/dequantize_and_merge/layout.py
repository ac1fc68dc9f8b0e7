"""The merged model before any of it is computed: its tensors, where each comes from, and the files they go to."""

import dataclasses
import math
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models.blockwise_quantization import BLOCK
from qlora_pipelines.components.core.models.parameter_names import Names
from qlora_pipelines.components.core.models.safetensors_files import FLOATS, ITEM_BYTES, SINGLE, Stored
from qlora_pipelines.components.dequantize_and_merge.adapter import Adapter, Edit
from qlora_pipelines.components.dequantize_and_merge.updates import TokenUpdate, Update

READ = 1 << 20
"""Bytes read at a time, or one row where that is more."""


@dataclasses.dataclass(frozen=True)
class OutputTensor:
    """One tensor of the merged model."""

    name: str
    dtype: str
    source: Stored
    update: Update | None = None
    transposed: bool = False
    """The file holds it as (in, out); 4-bit code and updates are (out, in)."""
    digest: str = ""
    """What training recorded of the tensor in 4 bit; empty: it was not quantised, or is taken as it is."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.source.shape) * ITEM_BYTES[self.dtype]

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of its source."""
        return self.update is None and not self.digest and self.dtype == self.source.dtype

    def row_ranges(self) -> list[tuple[int, int]]:
        """First and last row (not included) of each piece to read."""
        if self.transposed:
            return [(0, self.source.rows)]
        # 4-bit code has a scale per 64 values, counted through the rows, so a piece must be a multiple of 64 values.
        # n rows of a width are one if and only if n is a multiple of 64 / gcd(64, width).
        multiple = BLOCK // math.gcd(BLOCK, self.source.shape[1]) if self.digest else 1
        return self.source.row_ranges(READ, multiple)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of the merged model."""

    name: str
    tensors: list[OutputTensor]


@dataclasses.dataclass(frozen=True)
class MergedLayout:
    """The merged model: its files, whether head and embeddings are one tensor, and the rows of its embeddings.

    `vocabulary` is 0 where the adapter leaves the rows as many as they were.
    """

    shards: list[Shard]
    tied: bool
    vocabulary: int

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for shard in self.shards for tensor in shard.tensors)


def make(
    base: dict[str, Stored], names: Names, adapter: Adapter, digests: dict[str, str], shard_bytes: int
) -> MergedLayout:
    """Lays out a merged model.

    Args:
        base: the base's tensors.
        names: what transformers calls them.
        adapter: what becomes of which parameter.
        digests: of the weights to bring to 4 bit and back, by parameter.
        shard_bytes: largest file; a tensor that is larger gets a file of its own.

    Raises:
        InputError: the adapter does not fit the base.
    """
    for parameter in digests:
        if parameter not in names.tensors:
            raise InputError(f"training quantised {parameter}, and the base has no tensor for it: another base?")
    edits = dict(adapter.edits)
    embeddings = names.tied.get(names.head, "")
    tied = bool(embeddings) and _stays_tied(names, embeddings, edits, base, adapter.ties_embeddings)
    parameters = {tensor: parameter for parameter, tensor in names.tensors.items()}
    tensors = {}
    for name, stored in base.items():
        parameter = parameters.get(name, "")
        if tied and parameter == names.head:
            continue  # the same as the embeddings
        edit = edits.get(parameter, Edit())
        tensors[name] = _output(name, parameter, stored, edit, digests.get(parameter, ""), names)
    if embeddings and not tied and names.head not in names.tensors:
        # A head that was tied in the base, and no longer is, becomes a tensor of its own.
        name, stored = names.head_tensor, base[names.tensors[embeddings]]
        tensors[name] = _output(name, names.head, stored, edits.get(names.head, Edit()), "", names)
    own = names.tensors.get(names.embeddings)
    if own is None:  # transformers joins them of several tensors, which no adapter changes
        return MergedLayout(_shards(list(tensors.values()), shard_bytes), tied, 0)
    vocabulary, before = tensors[own].source.shape[0], base[own].shape[0]
    # Some have more embeddings than the head knows tokens, as Mllama for its images.
    of_head = (
        0 if tied else tensors[names.head_tensor].source.shape[0] - base.get(names.head_tensor, base[own]).shape[0]
    )
    if not tied and of_head != vocabulary - before:
        raise InputError(
            "the adapter resizes only one of embeddings and head, and they are not tied: save both with it"
        )
    vocabulary = 0 if vocabulary == before else vocabulary
    return MergedLayout(_shards(list(tensors.values()), shard_bytes), tied, vocabulary)


def _output(name: str, parameter: str, stored: Stored, edit: Edit, digest: str, names: Names) -> OutputTensor:
    """One tensor; what transformers makes nothing of is copied as it is."""
    source = edit.replacement or stored
    ends = {names.head_tensor, names.tensors.get(names.embeddings)}
    first = 1 if name in ends else 0  # embeddings and head may have grown
    if source.shape[first:] != stored.shape[first:] or len(source.shape) != len(stored.shape):
        raise InputError(f"{source.name} has shape {list(source.shape)}, and the base's {name} {list(stored.shape)}")
    if not stored.is_float and (edit.update or edit.replacement):
        raise InputError(
            f"the adapter changes {name}, whose values are {stored.dtype} in the base: it cannot be merged"
        )
    known = bool(parameter) or any(name in made_of for made_of in names.converted.values())
    left = name in names.not_language and not (edit.update or edit.replacement or digest)
    if not known or left or not stored.is_float:
        return OutputTensor(name, source.dtype, source)
    dtype = "F32" if name in names.full_precision and stored.dtype == "F32" else "BF16"
    digest = "" if edit.replacement else digest
    transposed = bool(edit.update or digest) and parameter in names.transposed
    return OutputTensor(name, dtype, source, edit.update, transposed, digest)


def _stays_tied(names: Names, embeddings: str, edits: dict[str, Edit], base: dict[str, Stored], keep: bool) -> bool:
    """Whether head and embeddings are still one tensor after the merge; if so, its edit is put under `embeddings`.

    In training, peft gives each of them what it was asked for: LoRA on one of two tied weights changes that one alone,
    so the two part. They stay one where nothing changes either, where both are replaced by the same values, or where
    one replacement is meant for both.

    Args:
        names: the base's parameters.
        embeddings: the parameter that the head is tied to.
        edits: by parameter; changed.
        base: the base's tensors.
        keep: whether the adapter was trained with `ensure_weight_tying`.
    """
    if embeddings not in names.tensors:  # the checkpoint names the shared tensor after the head
        raise InputError(f"the base ties {names.head} to {embeddings}, and has no tensor for that: copy the base again")
    stored = base[names.tensors[embeddings]]
    if names.head in names.tensors and not _same(base[names.tensors[names.head]], stored):
        return False  # as transformers does: both are there and differ, so the config is wrong
    of_head, of_embeddings = edits.get(names.head), edits.get(embeddings)
    if of_head is None and (
        of_embeddings is None or (isinstance(of_embeddings.update, TokenUpdate) and not of_embeddings.replacement)
    ):
        return True  # peft lets the head share trained tokens
    given = [edit for edit in (of_head, of_embeddings) if edit is not None]
    replacements = [edit.replacement for edit in given if edit.replacement and not edit.update]
    if len(replacements) < len(given):
        return False
    # A grown vocabulary is saved once for both.
    if _same(*replacements) if len(replacements) == 2 else keep or replacements[0].shape != stored.shape:
        edits.pop(names.head, None)
        edits[embeddings] = Edit(replacements[0])
        return True
    return False


def _same(one: Stored, other: Stored) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and all(
        one.read(*rows) == other.read(*rows) for rows in one.row_ranges(READ)
    )


def _shards(tensors: list[OutputTensor], shard_bytes: int) -> list[Shard]:
    """Files filled in the order of the tensors, named as `from_pretrained` looks for them."""
    groups: list[list[OutputTensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if groups[-1] and tensor.size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(tensor)
        room -= tensor.size
    many = len(groups)
    return [
        Shard(
            SINGLE if many == 1 else f"model-{number:05d}-of-{many:05d}.safetensors",
            # The first tensor begins at a multiple of 8 bytes. With wide items first, each begins at a multiple of the
            # size of its own items, so that readers can map the file into memory and use it in place.
            sorted(group, key=lambda tensor: -ITEM_BYTES[tensor.dtype]),
        )
        for number, group in enumerate(groups, 1)
    ]


def merged_config(config: dict[str, Any], layout: MergedLayout) -> dict[str, Any]:
    """The merged model's config.json: the base's, with dtype, ties and vocabulary as they are now."""
    made = {key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")}
    made["dtype"] = FLOATS["BF16"]
    text = made.get("text_config")
    for part in (made, text) if isinstance(text, dict) else (made,):
        if layout.vocabulary and "vocab_size" in part:
            part["vocab_size"] = layout.vocabulary
        if not layout.tied and (part is made or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    return made
