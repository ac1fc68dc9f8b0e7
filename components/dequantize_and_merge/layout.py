"""The merged model before any of it is computed: its tensors, where each comes from, and the files they go to."""

import dataclasses
import math
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models.safetensors_files import FLOATS, ITEM_BYTES, SINGLE, Stored
from qlora_pipelines.components.dequantize_and_merge.adapter import Adapter, Edit
from qlora_pipelines.components.dequantize_and_merge.parameter_names import Names
from qlora_pipelines.components.dequantize_and_merge.requantization import BLOCK
from qlora_pipelines.components.dequantize_and_merge.updates import Tokens, Update

READ = 1 << 20
"""Bytes read at a time, or one row where that is more."""


@dataclasses.dataclass(frozen=True)
class Output:
    """One tensor of the merged model."""

    name: str
    dtype: str
    source: Stored
    update: Update | None = None
    transposed: bool = False
    """The file holds it as (in, out); 4-bit code and updates are of (out, in)."""
    digest: str = ""
    """What training recorded of the tensor in 4 bit; empty: it was not quantised, or is taken as it is."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.source.shape) * ITEM_BYTES[self.dtype]

    def blocks(self) -> list[tuple[int, int]]:
        """First and last row (not included) of each piece to read."""
        if self.transposed:
            return [(0, self.source.rows)]
        step = max(1, READ // max(1, self.source.row_bytes))
        if self.digest:
            # Both ends of a piece lie between two blocks of the 4-bit code.
            aligned = BLOCK // math.gcd(BLOCK, self.source.shape[1])
            step = max(1, step // aligned) * aligned
        return [(first, min(first + step, self.source.rows)) for first in range(0, self.source.rows, step)]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of the merged model."""

    name: str
    outputs: list[Output]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The merged model: its files, whether head and embeddings are one tensor, and the rows of its embeddings."""

    shards: list[Shard]
    tied: bool
    vocabulary: int

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(output.size for shard in self.shards for output in shard.outputs)


def make(base: dict[str, Stored], names: Names, adapter: Adapter, digests: dict[str, str], shard_bytes: int) -> Plan:
    """Plans a merge.

    Args:
        base: the base's tensors.
        names: what transformers calls them.
        adapter: what becomes of which parameter.
        digests: of the weights to bring to 4 bit and back, by parameter.
        shard_bytes: largest file; a tensor that is larger gets a file of its own.

    Raises:
        InputError: the adapter does not fit the base.
    """
    edits = dict(adapter.edits)
    source = names.tied.get(names.head, "")
    tied = bool(source) and _settle_ties(names, source, edits, base, adapter.ties_embeddings)
    parameters = {tensor: parameter for parameter, tensor in names.tensors.items()}
    for parameter in digests:
        if parameter not in names.tensors:
            raise InputError(f"training quantised {parameter}, and the base has no tensor for it: another base?")
    outputs = []
    for name, stored in base.items():
        parameter = parameters.get(name, "")
        if tied and parameter == names.head:
            continue  # the same as the embeddings
        edit = edits.get(parameter, Edit())
        outputs.append(_output(name, parameter, stored, edit, digests.get(parameter, ""), names))
    if source and not tied and names.head not in names.tensors:
        stored = base[names.tensors[source]]
        outputs.append(_output(names.head_tensor, names.head, stored, edits.get(names.head, Edit()), "", names))
    by_name = {output.name: output for output in outputs}
    vocabulary = by_name[names.tensors[names.embeddings]].source.shape[0]
    if not tied and by_name[names.head_tensor].source.shape[0] != vocabulary:
        raise InputError(
            "the adapter resizes only one of embeddings and head, and they are not tied: save both with it"
        )
    return Plan(_shards(outputs, shard_bytes), tied, vocabulary)


def _output(name: str, parameter: str, stored: Stored, edit: Edit, digest: str, names: Names) -> Output:
    """One tensor; what transformers makes nothing of goes over as it is."""
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
    if not known or not stored.is_float:
        return Output(name, source.dtype, source)
    dtype = "F32" if name in names.full_precision and stored.dtype == "F32" else "BF16"
    digest = "" if edit.replacement else digest
    transposed = bool(edit.update or digest) and parameter in names.transposed
    return Output(name, dtype, source, edit.update, transposed, digest)


def _settle_ties(names: Names, source: str, edits: dict[str, Edit], base: dict[str, Stored], keep: bool) -> bool:
    """Whether head and embeddings are still one tensor after the merge; if so, its edit is put under `source`."""
    if source not in names.tensors:  # the checkpoint names the shared tensor after the head
        raise InputError(f"the base ties {names.head} to {source}, and has no tensor for that: copy the base again")
    if names.head in names.tensors and not _same(base[names.tensors[names.head]], base[names.tensors[source]]):
        return False  # as transformers does: both are there and differ, so the config is wrong
    head, embeddings = edits.get(names.head), edits.get(source)
    if head is None and (embeddings is None or (isinstance(embeddings.update, Tokens) and not embeddings.replacement)):
        return True  # peft lets the head share trained tokens
    given = [edit for edit in (head, embeddings) if edit is not None]
    replaced = [edit.replacement for edit in given if edit.replacement and not edit.update]
    if len(replaced) < len(given):
        return False
    resized = replaced[0].shape != base[names.tensors[source]].shape
    one = len(replaced) == 1 and (keep or resized)
    if one or (len(replaced) == 2 and _same(*replaced)):
        edits.pop(names.head, None)
        edits[source] = Edit(replaced[0])
        return True
    return False


def _same(one: Stored, other: Stored) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    step = max(1, READ // max(1, one.row_bytes))
    return all(
        one.read(first, min(first + step, one.rows)) == other.read(first, min(first + step, one.rows))
        for first in range(0, one.rows, step)
    )


def _shards(outputs: list[Output], shard_bytes: int) -> list[Shard]:
    """Files filled in the order of the tensors, named as `from_pretrained` looks for them."""
    groups: list[list[Output]] = [[]]
    room = shard_bytes
    for output in outputs:
        if groups[-1] and output.size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(output)
        room -= output.size
    many = len(groups)
    return [
        Shard(
            SINGLE if many == 1 else f"model-{number:05d}-of-{many:05d}.safetensors",
            # Wide items first: so each begins at a multiple of its own size.
            sorted(group, key=lambda output: -ITEM_BYTES[output.dtype]),
        )
        for number, group in enumerate(groups, 1)
    ]


def merged_config(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The merged model's config.json: the base's, with dtype, ties and vocabulary as they are now."""
    made = {key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")}
    made["dtype"] = FLOATS["BF16"]
    text = made.get("text_config")
    for part in (made, text) if isinstance(text, dict) else (made,):
        if "vocab_size" in part:
            part["vocab_size"] = plan.vocabulary
        if not plan.tied and (part is made or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    return made
