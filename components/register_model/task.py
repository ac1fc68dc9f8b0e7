"""Registers the merged model in MLflow by reference, once per merge_key and name, with its evidence.

If it is cut short at any point and run again, or run several times at once, the result is one version: the files next
to the model are made from the tags that the earliest version was created with, so all writers write the same bytes.
The alias `candidate` says that a version is whole; `champion` moves only if the champion is still the version that the
gate compared with.
"""

import re
import time
from typing import Any, NamedTuple

from qlora_pipelines.components.core.config.steps import RegisterConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import (
    champion,
    integrity,
    manifest,
    mlflow_client,
    references,
    signing,
    sources,
    versions,
)  # fmt: skip
from qlora_pipelines.components.core.registry.manifest import Files
from qlora_pipelines.components.core.registry.mlflow_client import retry, suppress
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import models_store, outcomes, storage
from qlora_pipelines.components.register_model import mlflow_files, model_card, provenance, publish

Config = RegisterConfig
AT_WORK_MS = 3_600_000
"""A registration takes minutes: one that began longer ago is dead, and nobody waits for it."""
FIGURES = ("base_loss", "loss", "base_exact_match", "exact_match")
"""The evidence that a notification of the run has."""


class Result(NamedTuple):
    """The version's number, the URI it is loaded by, and `champion`, or why it stays `candidate`."""

    model_version: str
    model_uri: str
    outcome: str


def run(
    config: RegisterConfig,
    *,
    merged_uri: str,
    merged_digest: str,
    merge_key: str,
    adapter_uri: str = "",
    adapter_digest: str = "",
    champion_version: str = "",
    evidence: dict[str, str] = {},  # noqa: B006, never changed; kfp and the command line know no None
    reports: dict[str, str] = {},  # noqa: B006
) -> Result:
    """Registers the model with its evidence, and makes it champion unless the champion changed since the gate.

    Args:
        config: the step's options.
        merged_uri: folder that dequantize_and_merge wrote.
        merged_digest: sha256 of its manifest, as dequantize_and_merge returned it and evaluate_model checked it.
        merge_key: names the merged model; a version with this key is not made again.
        adapter_uri: folder of the adapter in the store, to be kept next to the model; empty: none.
        adapter_digest: sha256 of the adapter's manifest, as train_qlora returned it.
        champion_version: the champion's version that the gate compared with; empty: there was none.
        evidence: what the version's tags say of its making, by name; `provenance.complete` adds what follows from it.
        reports: path of each step's HTML report, by the name it gets in MLflow.

    Raises:
        InputError: MLflow does not answer or refuses, or a file of the model or the adapter is gone, is not what was
            judged, or is not in its manifest.
    """
    for uri, what in ((merged_uri, "merged model"), (adapter_uri, "adapter")):
        storage.check_address(uri, what)
    if not re.fullmatch(r"[\w-]+", merge_key):
        raise InputError(f"merge_key {merge_key!r}: letters, digits, - and _ are expected")
    key = signing.signing_key()
    if not storage.is_remote(merged_uri):
        merged_uri = str(storage.local_path(merged_uri))
    merged = integrity.read(merged_uri, merged_digest, "merged model")
    adapter = integrity.read(adapter_uri, adapter_digest, "adapter") if adapter_uri else None
    judged = publish.judged_files(merged, adapter)
    data = provenance.datasets(evidence)
    client = mlflow_client.connect(timeout=60, retries=3)
    name, facts = config.model_name, provenance.complete(evidence, adapter)
    record = _Record(client, merge_key, facts)
    record.write()  # before anything is looked for: `qlora gc` leaves that alone from now on
    with mlflow_client.mlflow_errors(f"registering {name}", "run again, what is done is kept"):
        existing, created = _with_key(client, merge_key, name), None
        if not existing:
            tags = provenance.tags(merge_key, champion_version, facts)
            uri = publish.publish(merged, adapter, merge_key)
            created = _create(client, name, merge_key, uri, judged, tags)
            existing = _with_key(client, merge_key, name)
        version, *duplicates = existing
        _remove_duplicates(client, version, duplicates, created)
        if not _is_complete(version, judged):
            files, signed_by = _write_files(client, version, key, judged)
            provenance.log_run(client, version, data, reports)
            # The manifest's hash goes last: with it the version is registered.
            for tag, value in {"qlora.signed_by": signed_by, manifest.MANIFEST_TAG: files.sha256}.items():
                retry(client.set_model_version_tag, name, version.version, tag, value)
        outcome = _assign_alias(client, version, champion_version, new=created == version.version)
    number, won = str(version.version), outcome == champion.CHAMPION
    record.write(name, number)
    log(f"{name} version {number} is registered, {'alias champion' if won else outcome}")
    result = Result(number, f"models:/{name}{f'@{champion.CHAMPION}' if won else f'/{number}'}", outcome)
    told = {figure: facts[figure] for figure in FIGURES if figure in facts}
    outcomes.tell(**result._asdict(), figures=told, page=mlflow_client.page(name, number))
    return result


class _Record:
    """What this registry refers to in the store and in that of registered models, for `qlora gc`."""

    def __init__(self, client: Any, merge_key: str, facts: dict[str, str]) -> None:
        self._registry, self._merge_key = references.registry_id(client), merge_key
        known = {key: facts.get(key, "") for key in ("training_key", "data_digest", "base_uri")}
        self._pieces = references.pieces(merge_key=merge_key, **known)

    def write(self, model: str = "", version: str = "") -> None:
        stores = (storage.root(), models_store.root())
        references.write(self._registry, stores, self._merge_key, self._pieces, model, version)


def _with_key(client: Any, merge_key: str, name: str = "") -> list[Any]:
    """The versions of a merged model, earliest first: of one name, or of all."""
    of_name = f" and name = '{name}'" if name else ""
    found = versions.search(client, f"tags.`{versions.KEY_TAG}` = '{merge_key}'{of_name}")
    # Of one name the lowest number is the earliest, whatever the clocks of several servers say.
    return sorted(found, key=lambda item: (0 if name else item.creation_timestamp, item.name, int(item.version)))


def _create(client: Any, name: str, merge_key: str, uri: str, judged: Files, tags: dict[str, str]) -> Any:
    """Creates a version of files that are all there; returns its number."""
    # MLflow takes any address, also one where there is nothing.
    _check(client, uri, merge_key, judged)
    with suppress("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(name)
    run = provenance.find_or_start_run(client, name, merge_key)
    source = sources.source_uri(uri)
    return client.create_model_version(name, source=source, run_id=run, tags=tags, await_creation_for=0).version


def _check(client: Any, uri: str, merge_key: str, judged: Files) -> manifest.Manifest | None:
    """Checks that a version's folder has exactly what was judged, and what registration adds to it.

    Returns:
        The manifest there, if another version of the folder is registered: its SHA-256 is a tag in MLflow. Any other
        manifest there cannot be trusted; it and the files that registration adds are written again.

    Raises:
        InputError: a file is gone, is not the one that was judged, or is not in its manifest.
    """
    source = sources.source_uri(uri)
    tags = [item.tags.get(manifest.MANIFEST_TAG) for item in _with_key(client, merge_key) if item.source == source]
    registered = next((manifest.read(uri, tag) for tag in tags if tag), None)
    if registered:
        _compare(registered, judged, f"{uri} is registered", "delete its versions and run again")
    # Files that an attempt cut short left, or that somebody put there: they are written anew.
    copies = mlflow_files.tokenizer_copies(judged)
    adapter = [name for name in judged if name.startswith(f"{publish.ADAPTER}/")]
    added = {*manifest.ADDED, mlflow_files.COPIES, *copies, *adapter}
    files = registered.files if registered else judged
    what = f"merged model {uri}"
    integrity.check(uri, files, what, "run the merge again", lambda path: manifest.whole_name(path) in added)
    return registered


def _compare(registered: manifest.Manifest, judged: Files, what: str, remedy: str) -> None:
    for name, file in judged.items():
        if registered.files.get(name) != file:
            raise InputError(f"{what} with another {name} than was judged; {remedy}")


def _remove_duplicates(client: Any, version: Any, duplicates: list[Any], created: Any) -> None:
    """Takes back what attempts at the same time, or one cut short, have made.

    MLflow cannot create a version only if there is none: so create, look again, and the lowest number stays.
    """
    for other in duplicates:
        if manifest.MANIFEST_TAG not in other.tags:
            with suppress("RESOURCE_DOES_NOT_EXIST"):
                client.delete_model_version(other.name, other.version)
    if created or duplicates:
        provenance.remove_other_runs(client, version.name, version.tags[versions.KEY_TAG], version.run_id)


def _is_complete(version: Any, judged: Files) -> bool:
    """Whether its registration came to its end, and its files are still there and are those that were judged.

    Raises:
        InputError: it did, and they are not.
    """
    if manifest.MANIFEST_TAG not in version.tags:
        return False
    fix = f"delete version {version.version} of {version.name} and run again"
    try:
        registered = manifest.of_version(version)
    except InputError as error:
        raise InputError(f"{error}; {fix}") from None
    _compare(registered, judged, f"{version.name} version {version.version} is registered", fix)
    return True


def _to_match(client: Any, version: Any) -> str:
    """What plan_run hands on as the champion, for a model of this version's training."""
    return champion.to_match(client, version.name, version.tags.get(versions.TRAINING_TAG, ""))


def _owner(client: Any, version: Any) -> Any:
    """The earliest version with the same source, under whatever name: the files there are made from its tags."""
    found = _with_key(client, version.tags[versions.KEY_TAG])
    return next((item for item in found if item.source == version.source), version)


def _write_files(client: Any, version: Any, key: str, judged: Files) -> tuple[manifest.Manifest, str]:
    """Writes the files next to the model, then their manifest, then the signature.

    The manifest is made from what was judged, not from what is in the folder, so the signature covers that whatever
    becomes of the folder; the files are read once more before, so that no version is registered that fails its pull.

    Returns:
        The manifest, and the fingerprint of the key that signed, or `no`.
    """
    uri, merge_key = version.source, version.tags[versions.KEY_TAG]
    storage.check_address(uri, f"{version.name} version {version.version}")
    found = _check(client, uri, merge_key, judged)
    if found is None:
        made_from = _owner(client, version)
        made = mlflow_files.make(uri, judged, made_from.creation_timestamp, merge_key)
        made["README.md"] = model_card.make(made_from.name, provenance.of_version(made_from))
        for name, content in made.items():
            storage.write_bytes(storage.join(uri, name), content)
        found = manifest.make(uri, judged | {name: manifest.entry(content) for name, content in made.items()})
        storage.write_bytes(storage.join(uri, manifest.MANIFEST), found.content)
    signed_by = "no"
    if key:
        signature = signing.sign(found.signed_files, key)
        storage.write_bytes(storage.join(uri, signing.SIGNATURE), signature)
        signed_by = signing.fingerprint(signature)
    state = f"signed by {signed_by[:12]}" if key else "unsigned"
    log(f"{len(found.files)} files, {found.size / 1e9:.2f} GB, {state}")
    return found, signed_by


def _assign_alias(client: Any, version: Any, compared_with: str, *, new: bool) -> str:
    """Gives the version its alias; returns `champion`, or why it stays `candidate`.

    MLflow cannot move an alias only if it still points where it did. So of versions that are registered at the same
    time the earliest goes first: a version that finds an earlier one still registering stays candidate. One that is
    judged again finds any other one that is still registering.
    """
    name, number = version.name, str(version.version)
    current = champion.current_version(client, name)
    if not (new or version.tags.get(provenance.OUTCOME_TAG) == provenance.PENDING or current == number):
        retry(client.set_model_version_tag, name, number, provenance.OUTCOME_TAG, provenance.PENDING)
    elif current != number:
        retry(client.set_registered_model_alias, name, champion.CANDIDATE, number)
    at_work = [
        item.version
        for item in versions.search(
            client, f"name = '{name}' and tags.`{provenance.OUTCOME_TAG}` = '{provenance.PENDING}'"
        )
        if item.tags.get(versions.KEY_TAG) != version.tags[versions.KEY_TAG]
        and (not new or int(item.version) < int(number))
        and time.time() * 1000 - item.last_updated_timestamp < AT_WORK_MS
    ]
    current = champion.current_version(client, name)
    if current == number:
        outcome = champion.CHAMPION
    elif at_work:
        outcome = f"candidate: version {at_work[0]} was being registered at the same time"
    elif compared_with not in (current, _to_match(client, version)):
        now, then = (f"version {each}" if each else "none" for each in (current, compared_with))
        outcome = f"candidate: {now} now, the gate compared with {then}"
    else:
        champion.move(client, name, number, current)
        outcome = champion.CHAMPION
    retry(client.set_model_version_tag, name, number, provenance.OUTCOME_TAG, outcome)
    return outcome
