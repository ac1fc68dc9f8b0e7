"""The tokenised sets that pass between steps: one Parquet file a side, verified by whoever reads it."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from components.core import chat, keys
from components.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sample:
    """A kept row; `id` is the sha256 of its conversation."""

    id: str
    messages: list[chat.Message]
    encoded: chat.Encoded


def _digest(samples: Sequence[Sample]) -> str:
    found = hashlib.sha256()
    for sample in samples:
        found.update(json.dumps([sample.id, sample.encoded.input_ids, sample.encoded.labels]).encode())
    return found.hexdigest()


def write(sets: dict[str, tuple[list[Sample], str]]) -> str:
    """Writes all sides of a data set and returns its `dataset_digest`.

    Args:
        sets: by side, the samples and the path of the Parquet file to write
            (columns id, input_ids, labels, messages as JSON).
    """
    import pyarrow
    import pyarrow.parquet

    digests = {side: _digest(samples) for side, (samples, _) in sets.items()}
    ids = pyarrow.list_(pyarrow.int32())
    for side, (samples, path) in sets.items():
        table = pyarrow.table(
            {
                "id": [sample.id for sample in samples],
                "input_ids": pyarrow.array([sample.encoded.input_ids for sample in samples], ids),
                "labels": pyarrow.array([sample.encoded.labels for sample in samples], ids),
                "messages": [json.dumps(sample.messages, ensure_ascii=False) for sample in samples],
            },
            metadata={"side": side, "digests": json.dumps(digests)},
        )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, path)
    return keys.digest(digests)


def read(path: str, dataset_digest: str) -> list[Sample]:
    """The samples of one side.

    Raises:
        InputError: the file is not of the data set with this digest, or was altered.
    """
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"data set {path}: {str(error).splitlines()[0]}") from None
    metadata = table.schema.metadata or {}
    digests = json.loads(metadata.get(b"digests", b"{}"))
    samples = [
        Sample(row["id"], json.loads(row["messages"]), chat.Encoded(row["input_ids"], row["labels"]))
        for row in table.to_pylist()
    ]
    side = metadata.get(b"side", b"").decode()
    if keys.digest(digests) != dataset_digest or digests.get(side) != _digest(samples):
        raise InputError(f"data set {path}: its content is not that of dataset_digest {dataset_digest[:12]}")
    return samples
