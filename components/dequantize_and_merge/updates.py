"""What an adapter does to one tensor: arithmetic in float32 on its rows.

Each update is `apply(rows, first)`: the tensor's rows from `first` on, in any float dtype, to the same rows in float32.
The caller rounds them once, to the dtype of the file. Formulas and order of operations are those of peft's `merge`,
which the tests compare with bit by bit.

In the formulas W is a weight of shape (out, in), used as y = W x; A has shape (rank, in), B (out, rank), and s is the
scaling of the adapter. As W x + s B (A x) = (W + s B A) x for every x, the merged weight computes what base and adapter
do together (Hu et al. 2021, "LoRA", section 4.1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from qlora_pipelines.components.core.models.safetensors_files import Stored

Apply = Callable[[Any, int], Any]


class Update(Protocol):
    """Something an adapter does to a tensor."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is for a tensor of this shape."""

    def load(self) -> Apply:
        """Reads what it needs; the result is dropped with the tensor."""


def _product_shape(b: Stored, a: Stored) -> tuple[int, ...] | None:
    """The shape of B A; None where the two cannot be multiplied."""
    matrices = len(a.shape) == len(b.shape) == 2
    return (b.shape[0], a.shape[1]) if matrices and b.shape[1] == a.shape[0] else None


@dataclasses.dataclass(frozen=True)
class LoraUpdate:
    """LoRA: W + s B A. With a magnitude m, DoRA: m (W + s B A) / ||W + s B A|| (Liu et al. 2024, "DoRA", equation 5).

    ||.|| is the norm of each row, that is, of all weights of one output, as peft takes it. So m has shape (out,), and
    rows can be updated without the others.
    """

    a: Stored
    b: Stored
    scaling: float
    magnitude: Stored | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Update`."""
        fits_magnitude = self.magnitude is None or self.magnitude.shape == shape[:1]
        return _product_shape(self.b, self.a) == shape and fits_magnitude

    def load(self) -> Apply:
        """See `Update`."""
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
class EmbeddingLoraUpdate:
    """LoRA on embeddings: W + s (B A)'.

    W has shape (tokens, width), and a token's embedding is W' x with x one-hot. So LoRA is on W': A has shape
    (rank, tokens), B (width, rank).
    """

    a: Stored
    b: Stored
    scaling: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Update`."""
        return _product_shape(self.b, self.a) == shape[::-1]

    def load(self) -> Apply:
        """See `Update`."""
        a, b = self.a.tensor().float(), self.b.tensor().float()

        def apply(rows: Any, first: int) -> Any:
            return (b @ a[:, first : first + len(rows)]).T.mul(self.scaling).add_(rows)

        return apply


@dataclasses.dataclass(frozen=True)
class LoraBiasUpdate:
    """The bias that B may have (`lora_bias`), as W x + s (B (A x) + b): the layer's bias + s b, of shape (out,)."""

    bias: Stored
    scaling: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Update`."""
        return self.bias.shape == shape

    def load(self) -> Apply:
        """See `Update`."""
        scaled = self.bias.tensor().float() * self.scaling
        return lambda rows, first: scaled[first : first + len(rows)] + rows


@dataclasses.dataclass(frozen=True)
class TokenUpdate:
    """Trained rows in place of the embeddings' (`trainable_token_indices`); the values have shape (indices, width)."""

    values: Stored
    indices: tuple[int, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Update`."""
        known = all(0 <= token < shape[0] for token in self.indices)
        return known and self.values.shape == (len(self.indices), *shape[1:])

    def load(self) -> Apply:
        """See `Update`."""
        values = self.values.tensor().float()

        def apply(rows: Any, first: int) -> Any:
            found = rows.float()
            for place, token in enumerate(self.indices):
                if first <= token < first + len(rows):
                    found[token - first] = values[place]
            return found

        return apply
