from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model


@pytest.mark.parametrize(
    ("name", "on_hub"),
    [("org/model", True), ("org/model.v1-b", True), ("./models/a", False), ("/models/a", False), ("s3://b/a", False)],
)
def test_what_a_name_means(name: str, on_hub: bool) -> None:
    assert base_model.is_on_hub(name) == on_hub


def test_a_folder_that_is_there_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not base_model.is_on_hub("org/model")


def folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no such folder; give a folder with a model, an s3://, gs:// or az:// prefix or a Hugging Face id"),
        (("model.safetensors",), "no config.json there"),
        (("config.json",), "no *.safetensors there; other formats can run code and are refused"),
        (
            ("config.json", "pytorch_model.bin"),
            "no *.safetensors there, only pytorch_model.bin; other formats can run code and are refused",
        ),
        (
            ("config.json", "sub/model.safetensors"),
            "no *.safetensors there; other formats can run code and are refused",
        ),
    ],
)
def test_a_folder_that_is_no_model(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    base = folder(tmp_path, *names)
    with pytest.raises(InputError) as error:
        base_model.resolve(str(base), "")
    assert str(error.value) == f"base model {base}: {message}"


def test_the_revision_of_a_folder_is_its_content(tmp_path: Path) -> None:
    first, second = (folder(tmp_path / name, "config.json", "model.safetensors") for name in ("a", "b"))
    revision = base_model.resolve(str(first), "")
    assert base_model.resolve(str(second), revision) == revision
    (second / "model.safetensors").write_text("other")
    with pytest.raises(InputError, match=f"its files are not those of revision {revision[:19]}"):
        base_model.resolve(str(second), revision)
