"""How an answer ends, compared with where generation stops: a model that never stops is found out before it is made."""

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.data.chat_template import Encoded
from qlora_pipelines.components.core.models import loading, stop_tokens


def check(files: Path, tokenizer: Any, name: str) -> Iterator[tuple[str, str]]:
    """Level and text of what a base says of its own end, against its chat template.

    Args:
        files: folder with the base's config.json and generation_config.json.
        tokenizer: the run's.
        name: the base's, for the messages.
    """
    stated = stop_tokens.of_files(files)
    if not stop_tokens.of_folder(files, tokenizer):
        yield (
            "fatal",
            (
                f"base model {name}: nothing ends an answer: no {stop_tokens.EOS} in {stop_tokens.GENERATION} or"
                " config.json, no eos_token in the tokenizer, and no special token at the end of an answer in the chat"
                " template; set eos_token in tokenizer_config.json, or take another chat_template"
            ),
        )
        return
    # generation_config.json alone counts where it is: transformers then no longer looks into config.json.
    served = stop_tokens.read_json(files / stop_tokens.GENERATION)
    known = set(stated.get(stop_tokens.GENERATION if served else "config.json", []))
    if added := [token for token in stop_tokens.of_folder(files, tokenizer) if token not in known]:
        said = f"the base's {stop_tokens.GENERATION if served else 'config.json'} does not name"
        yield (
            "ok",
            (
                f"generation also stops at {_shown(tokenizer, added)}, which {said}: in evaluation, and in the merged"
                f" model's {stop_tokens.GENERATION}"
            ),
        )
    special = set(tokenizer.added_tokens_decoder)
    for file, ids in stated.items():
        if ordinary := [token for token in ids if token not in special]:
            yield (
                "warning",
                (
                    f"base model {name}: {stop_tokens.EOS} of its {file} is ordinary text"
                    f" ({_shown(tokenizer, ordinary)}), at which every answer would be cut; correct the file"
                ),
            )


def check_rows(files: Path, encoded: Sequence[Encoded], max_length: int) -> Iterator[tuple[str, str]]:
    """Level and text of what training would teach to end an answer with, if generation does not stop there.

    Args:
        files: folder with the run's tokenizer and the base's config.json and generation_config.json.
        encoded: the first rows of a side.
        max_length: tokens; of a row that long the end may be cut.
    """
    tokenizer = loading.load_tokenizer(files)
    stops = set(stop_tokens.of_folder(files, tokenizer))
    ends = [end for row in encoded if len(row.input_ids) < max_length for end in stop_tokens.endings(row)]
    unended = collections.Counter(end for end in ends if end not in stops)
    if not unended:
        return
    special = set(tokenizer.added_tokens_decoder)
    ordinary = sum(count for end, count in unended.items() if end not in special)
    total = sum(unended.values())
    if ordinary == total:
        text = "end with no special token: training does not teach the model to stop"
    else:
        text = f"end with {_shown(tokenizer, [unended.most_common(1)[0][0]])}, at which generation does not stop"
    yield "warning", f"{total} of the first {len(ends)} answers {text}"


def _shown(tokenizer: Any, ids: Sequence[int]) -> str:
    return ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(list(ids)))
