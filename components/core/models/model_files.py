"""What the files of a model's folder are: its tokenizer, its code, what a model made from it carries on, what is stale.

Paths are relative to the folder, with `/`.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import attempts

TEMPLATES = "additional_chat_templates"
"""The folder in which transformers keeps chat templates by name, besides the default one."""
_DESCRIPTIONS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm")
"""What configs, tokenizers and processors consist of."""
_CODE_AND_TERMS = ("*.py", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""Code that `auto_map` may name, and terms that hold for what is made from the model too."""
_TOKENIZER = (
    "tokenizer*", "tekken.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "vocab.json", "merges.txt",
    "normalizer.json", "chat_template.*", "*.model", "*.tiktoken", "*.spm",
)  # fmt: skip
_WEIGHTS = (
    "*index.json",  # of weights that are written anew, or of another format
    "quant*config.json", "hf_quant_config.json",  # what is made from a model is not quantised
    attempts.MANIFEST,
)  # fmt: skip
_STALE = (
    *_WEIGHTS,
    "adapter_config.json", "training_args*", "trainer_state.json", "optimizer*", "scheduler*", "*_results.json",
    "params.json", "consolidated*",  # Mistral's and Meta's own format: readers prefer it, and its weights are not there
    "openvino*", "onnx*", "genai_config.json", "mlc*", "ndarray-cache*", "ggml*", "gguf*",
)  # fmt: skip
"""What tells of weights in another format, or of how the base was made."""


def is_description(path: str) -> bool:
    """Whether a file is read to know what a model is: all that is small, without code, licence and weights."""
    return _is_template(path) or _matches(path, _DESCRIPTIONS)


def is_small(path: str) -> bool:
    """Whether a file is one of the model's, and no weights."""
    return is_description(path) or _matches(path, _CODE_AND_TERMS)


def tells_of_weights(path: str) -> bool:
    """Whether a small file lists a model's tensors or files, or tells how it is quantised."""
    return _matches(path, _WEIGHTS)


def is_tokenizer(path: str) -> bool:
    """Whether a file is the tokenizer's, its chat templates included."""
    return _is_template(path) or _matches(path, _TOKENIZER)


def descriptions(folder: Path) -> list[str]:
    """The files of a local folder by which its model and tokenizer are known, sorted."""
    return sorted(filter(is_description, _names(folder)))


def small(folder: Path) -> list[str]:
    """The files of a local folder that are the model's, without weights, sorted."""
    return sorted(filter(is_small, _names(folder)))


def carried(base: Path, tokenizer: Path | None = None) -> dict[str, bytes]:
    """What a model that is made from a base has of it as it was, by path.

    That is tokenizer and processors with their templates, terms, and code that an `auto_map` names. An entry of an
    `auto_map` whose code is not there, or in another repository, is left out: it would fail when the model is loaded
    with code of its own. Left out is also what tells of other weights.

    Args:
        base: the base's folder.
        tokenizer: the folder with the tokenizer's files, if that is another.

    Raises:
        InputError: a file cannot be read.
    """
    of_tokenizer = tokenizer or base
    names = [(base, name) for name in small(base) if not is_tokenizer(name)]
    names += [(of_tokenizer, name) for name in small(of_tokenizer) if is_tokenizer(name)]
    found: dict[str, bytes] = {}
    code: set[str] = set()
    for folder, name in names:
        if name.endswith(".py") or _matches(name, _STALE):
            continue
        found[name] = (folder / name).read_bytes()
        named = name.endswith(".json") and b'"auto_map"' in found[name]
        config = _parsed(folder / name, found[name]) if named else None
        if isinstance(config, dict) and "auto_map" in config:
            kept, files = auto_map(base, config["auto_map"])
            code |= files
            if kept != config.pop("auto_map"):
                found[name] = json.dumps(config | ({"auto_map": kept} if kept else {}), indent=2).encode()
    return found | {name: (base / name).read_bytes() for name in sorted(code)}


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies a tokenizer byte for byte: as transformers writes it anew, older versions may not read it."""
    for name in filter(is_tokenizer, small(source)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def auto_map(folder: Path, entries: Any) -> tuple[dict[str, Any], set[str]]:
    """The entries of an `auto_map` whose code is whole in the folder, and the files of that code.

    Args:
        folder: the model's.
        entries: as a config has them: a class of transformers, and the `module.Class` that stands for it, or several.
    """
    kept: dict[str, Any] = {}
    code: set[str] = set()
    for name, entry in (entries if isinstance(entries, dict) else {"AutoTokenizer": entries}).items():
        needed = [value for value in (entry if isinstance(entry, list | tuple) else [entry]) if value]
        files = [_code(folder, str(value)) for value in needed]
        if needed and all(files):
            kept[name] = entry
            code.update(*files)
    return kept, code


def _code(folder: Path, reference: str) -> set[str]:
    """The files of `module.Class`, with all that they import from next to them; none where one is not there."""
    from transformers.dynamic_module_utils import get_relative_import_files

    path = folder / f"{reference.rpartition('.')[0]}.py"
    if "--" in reference or not path.is_file():
        return set()
    try:
        imported = get_relative_import_files(str(path))
    except (OSError, UnicodeDecodeError):
        return set()
    return {path.name, *(Path(file).relative_to(folder).as_posix() for file in imported)}


def _names(folder: Path) -> Iterator[str]:
    """The files of a folder that a model's can be among: it keeps nothing deeper."""
    for path in (*folder.glob("[!.]*"), *folder.glob(f"{TEMPLATES}/[!.]*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _is_template(path: str) -> bool:
    return PurePosixPath(path).parts[:-1] == (TEMPLATES,) and path.endswith(".jinja")


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return "/" not in path and any(PurePosixPath(path).match(pattern) for pattern in patterns)


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
