"""The run's tokenizer: the base's own, byte for byte, or with another chat template where the run asks for one."""

import importlib.resources
import json
from pathlib import Path

from qlora_pipelines.components.core.config.base import nearest
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.models import base_model, loading, model_files, stop_tokens
from qlora_pipelines.components.core.store import storage

TEMPLATE = "chat_template.jinja"
"""The file that transformers reads first, and vLLM with it."""
PACKAGE = "qlora_pipelines.components.core.models.chat_templates"


def names() -> list[str]:
    """The templates that come with the package."""
    files = importlib.resources.files(PACKAGE).iterdir()
    return sorted(file.name.removesuffix(".jinja") for file in files if file.name.endswith(".jinja"))


def is_address(chat_template: str) -> bool:
    """Whether it names a Jinja file rather than a template that comes with the package."""
    return "/" in chat_template or chat_template.endswith((".jinja", ".j2", ".txt"))


def template(chat_template: str) -> str:
    """The text of a chat template.

    Args:
        chat_template: one of `names`, or the address of a Jinja file.

    Raises:
        InputError: there is no such template, it cannot be read, or it is no Jinja.
    """
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if is_address(chat_template):
        try:
            text = storage.read_bytes(chat_template).decode()
        except UnicodeDecodeError:
            raise InputError(f"chat_template {chat_template}: not UTF-8") from None
        except TransientError:
            raise
        except InputError as error:
            raise InputError(f"chat_template {error}") from None
    elif chat_template in names():
        text = importlib.resources.files(PACKAGE).joinpath(f"{chat_template}.jinja").read_text(encoding="utf-8")
    else:
        raise InputError(
            f"chat_template {chat_template}: no such template{nearest(chat_template, names())}; or give the address of"
            " a Jinja file"
        )
    try:
        _compile_jinja_template(text)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"chat_template {chat_template}: line {error.lineno}: {error.message}") from None
    if not text.strip():
        raise InputError(f"chat_template {chat_template}: it is empty")
    return text


def make(base: Path, chat_template: str, folder: Path) -> Path:
    """The folder of a run's tokenizer, with the base's config.json.

    Args:
        base: folder of the base's small files.
        chat_template: as in the run's options; empty: the base's own.
        folder: where a tokenizer with another template goes; it takes the place of all that the base has.

    Raises:
        InputError: the template is none, the tokenizer cannot be read, or it has not the template's marks.
    """
    if not chat_template:
        return base
    text = template(chat_template)
    for name in base_model.tokenizer_files(base):
        if Path(name).name.startswith("chat_template.") or name.startswith(model_files.TEMPLATES):
            continue
        content = (base / name).read_bytes()
        if model_files.is_tokenizer(name) and name.endswith("_config.json"):
            config = json.loads(content)
            if config.pop("chat_template", None) is not None:
                content = json.dumps(config, indent=2).encode()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / TEMPLATE).write_text(text, encoding="utf-8")
    if not stop_tokens.end_of_turn(loading.load_tokenizer(folder)):
        raise InputError(
            f"chat_template {chat_template}: with this base's tokenizer an answer ends in ordinary text, and no model"
            " could stop there: take a template whose marks are special tokens of it, or one that writes eos_token,"
            " as alpaca does"
        )
    return folder
