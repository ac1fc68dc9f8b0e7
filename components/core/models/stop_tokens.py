"""How an answer ends: the tokens at which generation stops, the same in the plan, in evaluation and in what is served.

Training teaches the token with which the chat template ends an answer. Whether generation stops there is another
matter: transformers and vLLM read `eos_token_id` from generation_config.json, which may name another or be missing.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.chat_template import IGNORED, Encoded, Message
from qlora_pipelines.components.core.errors import InputError

GENERATION = "generation_config.json"
EOS = "eos_token_id"
QUESTION: Message = {"role": "user", "content": "a"}
TOOL = {
    "type": "function",
    "function": {
        "name": "a",
        "description": "a",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}},
    },
}
CALL = {"id": "123456789", "type": "function", "function": {"name": "a", "arguments": {"a": "a"}}}  # Mistral wants 9
PROBES: tuple[tuple[Message, list[dict[str, Any]]], ...] = (
    ({"role": "assistant", "content": "a"}, []),
    ({"role": "assistant", "content": "", "tool_calls": [CALL]}, [TOOL]),
)
"""The last turn of a short conversation, with the tools that it may call: an answer in words, and a call of a tool."""


def eos_token_ids(tokenizer: Any, *known: int | Iterable[int] | None) -> list[int]:
    """All tokens that end an answer: those known, the tokenizer's own, and those that the chat template puts there.

    Args:
        tokenizer: with or without a chat template.
        *known: what a model's files say, each as transformers has it: an id, several, or None.
    """
    flat = itertools.chain.from_iterable([ids] if isinstance(ids, int) else ids or () for ids in known)
    return sorted({*flat, *end_of_turn(tokenizer), tokenizer.eos_token_id} - {None})


def end_of_turn(tokenizer: Any) -> list[int]:
    """The special tokens that the chat template ends an answer with, and a call of a tool: the last one supervised.

    Empty where it ends them with ordinary text, or there is no template.
    """
    special = set(tokenizer.added_tokens_decoder)
    found = set()
    for answer, tools in PROBES:
        try:
            encoded = chat_template.encode(tokenizer, [QUESTION, answer], 1 << 20, tools=tools)
        except InputError:  # it has no tools, or wants other turns
            continue
        found.update(endings(encoded)[-1:])
    return sorted(found & special)


def endings(encoded: Encoded) -> list[int]:
    """The last token of each run of supervised ones: what training teaches to end an answer with."""
    following = [*encoded.labels[1:], IGNORED]
    pairs = zip(encoded.labels, following, strict=False)
    return [label for label, after in pairs if label != IGNORED and after == IGNORED]


def of_files(folder: Path) -> dict[str, list[int]]:
    """What a model's files say of `eos_token_id`, by file: only what is written there, not a library's default.

    Raises:
        InputError: a file cannot be read.
    """
    found = {}
    for name in (GENERATION, "config.json"):
        stated = read_json(folder / name)
        text = stated.get("text_config")
        ids = stated.get(EOS, text.get(EOS) if isinstance(text, dict) else None)
        if ids is not None:
            found[name] = [ids] if isinstance(ids, int) else list(ids)
    return found


def of_folder(folder: Path, tokenizer: Any) -> list[int]:
    """All tokens that end an answer of the model in a folder.

    Args:
        folder: has its config.json, and its generation_config.json if there is one.
        tokenizer: its own, or the one that it was trained with.

    Raises:
        InputError: a file cannot be read.
    """
    return eos_token_ids(tokenizer, *of_files(folder).values())


def generation_config(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """The generation_config.json of a model that was made from the one in a folder.

    It is that model's own, with all tokens that end an answer. Where it leaves sampling open, answers are not sampled:
    transformers' pipeline would. Where there is none, transformers takes the ids of special tokens from config.json,
    and would no longer do so: they are written down.

    Raises:
        InputError: a file cannot be read.
    """
    made = read_json(folder / GENERATION)
    if not made:
        config = read_json(folder / "config.json")
        text = config.get("text_config") or {}
        stated = {name: config.get(name, text.get(name)) for name in ("bos_token_id", "pad_token_id")}
        made = {name: value for name, value in stated.items() if value is not None}
    made = {"do_sample": False} | made
    if ids := of_folder(folder, tokenizer):
        made[EOS] = ids[0] if len(ids) == 1 else ids
    return made


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file; empty where there is no file.

    Raises:
        InputError: it is not JSON, or no object.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: it holds no JSON object")
    return found
