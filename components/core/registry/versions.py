"""Versions and aliases in MLflow's registry: by name, by key, and how they move."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client

KEY_TAG = "qlora.merge_key"
OUTCOME_TAG = "qlora.outcome"
"""`registering` while a registration is at work, then what became of the version."""
PENDING = "registering"
CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
TRIES = 4


class Reference(NamedTuple):
    """What `models:/NAME@ALIAS` or `models:/NAME/VERSION` says; one of alias and version is ''."""

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
    name, alias, version = found.group(1), found.group(2) or "", found.group(3) or ""
    if alias.lower() == "latest" or version.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise InputError(f"{uri}: MLflow reserves {alias or version}; give an alias such as champion, or a version")
    if "." in alias:
        raise InputError(f"{uri}: an alias has no dots in MLflow")
    if version and not version.isdigit():
        raise InputError(f"{uri}: a version is a number; an alias is written @{version}")
    return Reference(name, alias, version)


@contextlib.contextmanager
def explained(what: str, mend: str = "") -> Iterator[None]:
    """Turns what MLflow raises into one line.

    Args:
        what: what was being done, for the message.
        mend: what to do, for the message.

    Raises:
        InputError: the reason, and what to do.
    """
    import mlflow
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except mlflow.MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise InputError(f"{what}: MLflow gives this login no permission for it") from None
        raise InputError(f"{what}: MLflow: {mlflow_client.reason(error)}{mend and f'; {mend}'}") from None
    except (RequestException, SQLAlchemyError) as error:
        raise InputError(
            f"{what}: MLflow does not answer: {mlflow_client.reason(error)}{mend and f'; {mend}'}"
        ) from None


def resolve(client: Any, uri: str) -> Any:
    """The version that an address means now.

    Raises:
        InputError: there is none, or MLflow does not say.
    """
    import mlflow

    name, alias, version = parse(uri)
    with explained(uri):
        try:
            if alias:
                return client.get_model_version_by_alias(name, alias)
            return client.get_model_version(name, version)
        except mlflow.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" or (alias and "alias" in str(error).lower()):
                raise InputError(f"{uri}: there is no such version; {_what_there_is(client, name)}") from None
            raise


def _what_there_is(client: Any, name: str) -> str:
    import mlflow

    try:
        aliases = client.get_registered_model(name).aliases
    except mlflow.MlflowException:
        return f"no model {name} is registered"
    return f"{name} has {', '.join(f'@{alias} (version {to})' for alias, to in sorted(aliases.items())) or 'no alias'}"


def versions(client: Any, search: str = "") -> list[Any]:
    """All versions that a search finds, of every page."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(search, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def of_key(client: Any, merge_key: str, name: str = "") -> list[Any]:
    """The versions of a merged model, earliest first: of one name, or of all."""
    search = f"tags.`{KEY_TAG}` = '{merge_key}'" + (f" and name = '{name}'" if name else "")
    found = versions(client, search)
    if name:
        return sorted(found, key=lambda item: int(item.version))
    return sorted(found, key=lambda item: (item.creation_timestamp, item.name, int(item.version)))


def repeated(write: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """A write that changes nothing when made twice, made again where MLflow's database refuses it.

    Two that write the same alias or tag at once both insert it, and one of them is refused.
    """
    import mlflow

    for left in reversed(range(TRIES)):
        try:
            return write(*given, **named)
        except mlflow.MlflowException as error:
            if not left or error.error_code not in ("BAD_REQUEST", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
                raise
            time.sleep(0.2 * (TRIES - left))
    raise AssertionError("unreachable")


def move_champion(client: Any, name: str, version: str, former: str) -> None:
    """Sets `champion` on a version; the former one keeps `previous`.

    `previous` goes first: cut short in between, both aliases mean the former champion, and running again mends it.
    """
    if former and former != version:
        repeated(client.set_registered_model_alias, name, PREVIOUS, former)
    if former != version:
        repeated(client.set_registered_model_alias, name, CHAMPION, version)
