"""Versions in MLflow's registry: their addresses, and the search for them."""

import re
from typing import Any, NamedTuple

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry.mlflow_client import NOT_FOUND, mlflow_errors, suppress

KEY_TAG, TRAINING_TAG = "qlora.merge_key", "qlora.training_key"
COMPARED_TAG = "qlora.compared_with"
"""Number of the version that the gate compared with when this one was registered, or `no champion`."""


class Reference(NamedTuple):
    """What `models:/NAME@ALIAS` or `models:/NAME/VERSION` says; either alias or version is ''."""

    name: str
    alias: str
    version: str


def parse(uri: str) -> Reference:
    """Reads `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        InputError: it is neither, or an alias that MLflow reserves or cannot have.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([^/@]+))", uri)
    if not found:
        raise InputError(f"{uri}: give models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = found.groups(default="")
    if alias.lower() == "latest" or version.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise InputError(f"{uri}: MLflow reserves {alias or version}; give an alias such as champion, or a version")
    if "." in alias:
        raise InputError(f"{uri}: an alias has no dots in MLflow")
    if version and not version.isdigit():
        raise InputError(f"{uri}: a version is a number; an alias is written @{version}")
    return Reference(name, alias, version)


def resolve(client: Any, uri: str) -> Any:
    """The version that an address means now.

    Raises:
        InputError: there is none, or MLflow does not say.
    """
    name, alias, version = parse(uri)
    with mlflow_errors(uri):
        with suppress(*NOT_FOUND):
            if number := version or of_alias(client, name, alias):
                return client.get_model_version(name, number)
        hint = f"no model {name} is registered"
        with suppress(*NOT_FOUND):
            aliases = sorted(client.get_registered_model(name).aliases.items())
            hint = f"{name} has {', '.join(f'@{alias} (version {to})' for alias, to in aliases) or 'no alias'}"
        raise InputError(f"{uri}: there is no such version; {hint}")


def of_alias(client: Any, name: str, alias: str) -> str:
    """The number of the version that has an alias now; '' where there is none.

    Not by `get_model_version_by_alias`: if there is no such model, a server with logins tells all but administrators
    that they have no permission (MLflow 3.17).

    Raises:
        mlflow.MlflowException: MLflow does not say.
    """
    with suppress(*NOT_FOUND):
        return str(client.get_registered_model(name).aliases.get(alias, ""))
    return ""


def search(client: Any, query: str = "") -> list[Any]:
    """All versions that match a query, from every page of the answer."""
    from mlflow.utils import get_results_from_paginated_fn

    def page(size: int, token: str | None) -> Any:
        return client.search_model_versions(query, max_results=size, page_token=token)

    return list(get_results_from_paginated_fn(page, 1000))
