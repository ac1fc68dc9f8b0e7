"""Packs conversations into rows of equal length, so that no time is spent on padding."""

import bisect
from collections.abc import Sequence
from typing import Any

from qlora_pipelines.components.core.data import chat_template


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each item, longest first, goes into the fullest row that still has room for it.

    This takes at most 11/9 of the fewest rows possible, plus four (Johnson et al. 1974, SIAM J. Comput. 3, "Worst-case
    performance bounds for simple one-dimensional packing algorithms"). Nothing is cut.

    Args:
        lengths: tokens of each item.
        capacity: tokens of a row; a longer item gets a row of its own.

    Returns:
        The rows as lists of indices into `lengths`; the same lengths give the same rows.
    """
    rows: list[list[int]] = []
    # (room left, row), sorted by room: the first row with enough room is the fullest one, and bisection finds it. So n
    # items take O(n log n) comparisons, where a search through all open rows would take O(n^2). -1 is below all row
    # numbers, so a row with exactly the room that is needed is found too.
    open_rows: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        fits = bisect.bisect_left(open_rows, (lengths[index], -1))
        if fits < len(open_rows):
            room, row = open_rows.pop(fits)
        else:
            room, row = max(capacity, lengths[index]), len(rows)
            rows.append([])
        rows[row].append(index)
        if room > lengths[index]:
            bisect.insort(open_rows, (room - lengths[index], row))
    return rows


def rows(encoded: Sequence[chat_template.Encoded], capacity: int) -> list[dict[str, list[int]]]:
    """Conversations packed into rows: their `input_ids` and `labels` end to end, and their `lengths`.

    The first label of each conversation is ignored. Label t is predicted from position t - 1, so nothing predicts the
    first token; in a packed row, the last token of the conversation before it would. The labels that remain are exactly
    the supervised tokens, by whose number the trainer divides the loss.
    """
    lengths = [len(item.input_ids) for item in encoded]
    return [joined([encoded[index] for index in row]) for row in pack(lengths, capacity)]


def joined(items: Sequence[chat_template.Encoded]) -> dict[str, list[int]]:
    """One row of these conversations, in this order; see `rows`."""
    return {
        "input_ids": [token for item in items for token in item.input_ids],
        "labels": [label for item in items for label in (chat_template.IGNORED, *item.labels[1:])],
        "lengths": [len(item.input_ids) for item in items],
    }


def collate(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Flattens a batch of packed rows into one long row, with the borders of its conversations.

    Positions start again at 0 in each conversation, as if it were alone. Rotary embeddings depend only on differences
    of positions (Su et al. 2021, section 3.2), so for them this changes nothing within a conversation; learned ones
    depend on the positions themselves.

    Returns:
        `input_ids`, `labels` and `position_ids` of shape (1, tokens); of several conversations also `cu_seq_lens_q`,
        shape (conversations + 1,): their cumulative lengths, as attention kernels take them. One alone has none, so
        that it does not look packed: layers that cannot be told of borders, such as linear attention without its
        kernels, fail where they are given some.
    """
    import torch

    lengths = [length for row in batch for length in row["lengths"]]
    found = {
        "input_ids": torch.tensor([[token for row in batch for token in row["input_ids"]]]),
        "labels": torch.tensor([[label for row in batch for label in row["labels"]]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }
    if len(lengths) > 1:
        found["cu_seq_lens_q"] = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return found
