"""What is judged is what the steps before handed on, whatever others write meanwhile."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.evaluate_model import scored_models, task
from tests.components.conftest import TinyRun, digest, sealed
from tests.components.evaluate_model.conftest import Judge

WEIGHTS = {"merged_uri": "model/model.safetensors", "adapter": "adapter_model.safetensors"}
"""Of what is judged, by the argument that names it."""


@pytest.fixture(params=list(WEIGHTS))
def subject(
    request: pytest.FixtureRequest,
    merged_uri: str,
    adapter: Path,
    judged: task.Result,
    tiny_run: TinyRun,
    tmp_path: Path,
) -> tuple[Path, Path, dict[str, str]]:
    """A copy of a merged model or an adapter, its weights, and how it is judged with the digest of the original."""
    name = request.param
    original = Path(merged_uri) if name == "merged_uri" else adapter
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    given = {name: str(folder), f"{name.removesuffix('_uri')}_digest": digest(original)}
    if name == "merged_uri":
        given |= {"adapter": "", "adapter_scores": str(tiny_run.folder / "scores")}
    return folder, folder / WEIGHTS[name], given


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swapped(folder: Path, weights: Path, work: Callable[..., Any]) -> Callable[..., Any]:
    """Other weights while the work is done, and the old ones afterwards."""

    def run(*given: Any, **named: Any) -> Any:
        aside = folder.parent / "aside"
        weights.rename(aside)
        shutil.copyfile(aside, weights)
        flip(weights)
        result = work(*given, **named)
        aside.replace(weights)
        return result

    return run


def refused(judge: Judge, given: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        judge(**given)
    assert not (tmp_path / "scores").exists() and not (tmp_path / "report.html").exists()


def test_it_is_judged_where_nothing_changed(subject: tuple[Path, Path, dict[str, str]], judge: Judge) -> None:
    _, _, given = subject
    assert judge(**given).loss > 0


def test_weights_and_manifest_replaced_since_are_refused(
    subject: tuple[Path, Path, dict[str, str]], judge: Judge, tmp_path: Path
) -> None:
    folder, weights, given = subject
    flip(weights)
    sealed(folder)
    refused(judge, given, r"manifest.json was altered: its sha256 is .*, the step that made the .* said", tmp_path)


def test_replaced_weights_are_refused(subject: tuple[Path, Path, dict[str, str]], judge: Judge, tmp_path: Path) -> None:
    _, weights, given = subject
    flip(weights)
    refused(judge, given, f"{weights.name} was altered", tmp_path)


def test_an_extra_file_next_to_the_weights_is_refused(
    subject: tuple[Path, Path, dict[str, str]], judge: Judge, tmp_path: Path
) -> None:
    _, weights, given = subject
    weights.with_name("special_tokens_map.json").write_text("{}")
    refused(judge, given, r"special_tokens_map.json is not in the manifest; remove it and run again", tmp_path)


def test_a_link_in_the_place_of_the_weights_is_refused(
    subject: tuple[Path, Path, dict[str, str]], judge: Judge, tmp_path: Path
) -> None:
    _, weights, given = subject
    weights.rename(tmp_path / "moved")
    weights.symlink_to(tmp_path / "moved")
    refused(judge, given, f"{weights.name} is a symbolic link", tmp_path)


def test_weights_that_are_others_only_while_they_are_loaded_are_refused(
    subject: tuple[Path, Path, dict[str, str]], judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights, given = subject
    for name in ("merged", "base_and_adapter"):
        monkeypatch.setattr(scored_models, name, swapped(folder, weights, getattr(scored_models, name)))
    refused(judge, given, "a file changed while it was read; run again", tmp_path)


def test_without_a_digest_nothing_is_judged(
    subject: tuple[Path, Path, dict[str, str]], judge: Judge, tmp_path: Path
) -> None:
    _, _, given = subject
    refused(judge, given | dict.fromkeys(("adapter_digest", "merged_digest"), ""), "give its digest", tmp_path)


def test_a_registered_model_is_judged_again(
    merged_uri: str, judge: Judge, judged: task.Result, tiny_run: TinyRun, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(merged_uri, tmp_path / "registered"))
    for name in ("MLmodel", "adapter/adapter_config.json", "components/tokenizer/tokenizer.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    scores = str(tiny_run.folder / "scores")
    assert judge(merged_uri=str(folder), adapter="", adapter_scores=scores).loss > 0
