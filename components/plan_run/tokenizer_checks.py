"""Whether tokenizer and model belong together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.models import vocabulary


def check(files: Path, tokenizer: Any, name: str) -> Iterator[tuple[str, str]]:
    """Level and text of tokens that the model has no embedding for.

    Args:
        files: folder with the base's config.json.
        tokenizer: the run's.
        name: the base's, for the messages.
    """
    tokens = vocabulary.beyond(tokenizer, files)
    if not tokens:
        return
    text = f"base model {name}: it has no embedding for {len(tokens)} of its tokenizer's tokens"
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & tokens.keys()
    if needed:
        special = ", ".join(tokens[token] for token in sorted(needed))
        yield "fatal", f"{text}, among them {special}: give it the tokenizer that it was published with"
        return
    shown = ", ".join(list(tokens.values())[:3])
    ordinary = tokens.keys() - tokenizer.added_tokens_decoder.keys()
    yield "warning" if ordinary else "ok", f"{text} ({shown}): rows that have one are rejected"
