"""What an adapter does to one tensor: arithmetic in float32 on its rows, rounded once by who asked.

Each update is `apply(rows, first)`: the tensor's rows from `first` on, in any float dtype, to the same rows in float32.
The formulas are those of peft's `merge`, which the tests compare with bit by bit.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from qlora_pipelines.components.core.models.safetensors_files import Stored

Apply = Callable[[Any, int], Any]


class Update(Protocol):
    """Something an adapter does to a tensor."""

    def load(self) -> Apply:
        """Reads what it needs; the result is dropped with the tensor."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """LoRA: W + scaling * B A (Hu et al. 2021, section 4.1).

    With a magnitude, DoRA: each row of that brought to its length (Liu et al. 2024, equation 5).
    """

    a: Stored
    b: Stored
    scaling: float
    magnitude: Stored | None = None

    def load(self) -> Apply:
        """A has shape (rank, in), B (out, rank), the magnitude (out,)."""
        import torch

        a, b = self.a.tensor().float(), self.b.tensor().float()
        magnitude = self.magnitude.tensor().float() if self.magnitude else None

        def apply(rows: Any, first: int) -> Any:
            found = (b[first : first + len(rows)] @ a).mul_(self.scaling).add_(rows)
            if magnitude is not None:
                factor = magnitude[first : first + len(rows)] / torch.linalg.norm(found, dim=1)
                found.mul_(factor[:, None])
            return found

        return apply


@dataclasses.dataclass(frozen=True)
class LowRankOfEmbeddings:
    """LoRA on embeddings, whose rows are tokens: W + scaling * (B A) transposed."""

    a: Stored
    b: Stored
    scaling: float

    def load(self) -> Apply:
        """A has shape (rank, tokens), B (width, rank)."""
        a, b = self.a.tensor().float(), self.b.tensor().float()

        def apply(rows: Any, first: int) -> Any:
            return (b @ a[:, first : first + len(rows)]).T.mul(self.scaling).add_(rows)

        return apply


@dataclasses.dataclass(frozen=True)
class BiasOfLowRank:
    """The bias that B may have (`lora_bias`): bias + scaling * B's."""

    by: Stored
    scaling: float

    def load(self) -> Apply:
        """B's bias has shape (out,)."""
        by = self.by.tensor().float() * self.scaling
        return lambda rows, first: by[first : first + len(rows)] + rows


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Trained rows of the embeddings in place of the base's (`trainable_token_indices`)."""

    values: Stored
    indices: tuple[int, ...]

    def load(self) -> Apply:
        """The values have shape (indices, width)."""
        values = self.values.tensor().float()

        def apply(rows: Any, first: int) -> Any:
            found = rows.float()
            for place, token in enumerate(self.indices):
                if first <= token < first + len(rows):
                    found[token - first] = values[place]
            return found

        return apply
