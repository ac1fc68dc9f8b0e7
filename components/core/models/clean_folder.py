"""A base's folder without what would make transformers load something else, or run somebody's code.

Nor has its config.json what it says of quantised weights: it describes the 16-bit model that stage_base_model makes.

An `adapter_config.json` next to a model has transformers put that adapter on it, without a word. Keys of config.json
choose kernels, and one of the form `someone/kernel` has code fetched from the hub.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.models import published_quantization

ADAPTER = "adapter_config.json"
CHOICES = {f"{mark}{what}_implementation" for mark in ("", "_") for what in ("attn", "experts", "attention")} | {
    "use_kernels",
    "kernel_config",
}
"""Keys that choose kernels, for the model or a part of it."""
_VIEWS: dict[Path, "tempfile.TemporaryDirectory[str]"] = {}
"""Kept as long as the process: a model that is offloaded reads its files again."""


def found(folder: Path) -> list[str]:
    """What of a folder is switched off, in words."""
    own = [f"{ADAPTER}: the adapter next to the model is not loaded"] if (folder / ADAPTER).exists() else []
    chosen = _chosen(_read(folder))
    return own + [f"config.json's {key} {json.dumps(value)} is not followed" for key, value in chosen.items()]


def view(folder: Path) -> Path:
    """The folder itself, or where something is switched off one with links to its other files."""
    if not found(folder) and not published_quantization.config_of(folder):
        return folder
    if folder not in _VIEWS:
        _VIEWS[folder] = tempfile.TemporaryDirectory()
        place = Path(_VIEWS[folder].name)
        for path in folder.iterdir():
            if path.is_file() and path.name != "config.json" and not path.name.startswith("adapter_"):
                (place / path.name).symlink_to(path.resolve())
        (place / "config.json").write_text(json.dumps(_without(_read(folder))))
    return Path(_VIEWS[folder].name)


def _read(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}  # whoever reads it for its content says what is wrong
    return config if isinstance(config, dict) else {}


def _chosen(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that choose kernels and what they say, those of parts included."""
    chosen = {key: value for key, value in config.items() if key in CHOICES and value}
    for part in config.values():
        if isinstance(part, dict):
            chosen |= _chosen(part)
    return chosen


def _without(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in CHOICES | {published_quantization.KEY}}
    return {key: _without(value) if isinstance(value, dict) else value for key, value in kept.items()}
