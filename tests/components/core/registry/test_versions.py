import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import versions


def test_an_address_is_read() -> None:
    assert versions.parse("models:/tickets@champion") == ("tickets", "champion", "")
    assert versions.parse("models:/tickets/3") == ("tickets", "", "3")


def test_an_alias_of_another_reading_is_refused() -> None:
    for uri, message in {
        "models:/a@latest": "MLflow reserves latest",
        "models:/a/latest": "MLflow reserves latest",
        "models:/a@v1": "MLflow reserves v1",
        "models:/a@b.c": "an alias has no dots",
        "models:/a/champion": "a version is a number; an alias is written @champion",
        "a@champion": "give models:/NAME@ALIAS or models:/NAME/VERSION",
    }.items():
        with pytest.raises(InputError, match=message):
            versions.parse(uri)
