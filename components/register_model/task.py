"""Registers the merged model in MLflow by reference, once a merge_key and name, with its evidence.

Cut short at any point and run again, or run several times at once, it comes to one version: the files beside the
model are made from the tags that the earliest version was created with, so all that write them write the same bytes.
The alias `candidate` says that a version is whole; `champion` moves only if the champion is still the version that the
gate compared with.
"""

import re
import time
from typing import Any, NamedTuple

from qlora_pipelines.components.core.config.steps import RegisterConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, mlflow_client, signing, versions
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, storage, transfer
from qlora_pipelines.components.register_model import mlflow_files, model_card, publish
from qlora_pipelines.components.register_model import provenance as proof

Config = RegisterConfig
AGAIN = "run again, what is done is kept"
AT_WORK_MS = 3_600_000
"""A registration takes minutes: one that began longer ago is dead, and nobody waits for it."""


class Result(NamedTuple):
    """The version's number, the URI it is loaded by, and `champion`, or why it stays `candidate`."""

    model_version: str
    model_uri: str
    outcome: str


def run(
    config: RegisterConfig,
    *,
    merged_uri: str,
    merge_key: str,
    adapter_uri: str = "",
    champion_version: str = "",
    evidence: dict[str, str] = {},  # noqa: B006, never changed; kfp and the command line know no None
    reports: dict[str, str] = {},  # noqa: B006
) -> Result:
    """Registers the model with its evidence, and makes it champion where nothing came in between.

    Args:
        config: the step's options.
        merged_uri: folder that dequantize_and_merge wrote.
        merge_key: names the merged model; a version with this key is not made again.
        adapter_uri: folder of the adapter in the store, to be kept beside the model; empty: none.
        champion_version: the champion's version that the gate compared with; empty: there was none.
        evidence: what the version's tags say of its making, by name.
        reports: path of each step's HTML report, by the name it gets in MLflow.

    Raises:
        InputError: MLflow does not answer or refuses, or a file of the model is gone or another.
    """
    for uri, what in ((merged_uri, "merged model"), (adapter_uri, "adapter")):
        transfer.check_address(uri, what)
    if not re.fullmatch(r"[\w-]+", merge_key):
        raise InputError(f"merge_key {merge_key!r}: letters, digits, - and _ are expected")
    key = signing.signing_key()
    if not storage.is_s3(merged_uri):
        merged_uri = str(storage.local_path(merged_uri))
    data = proof.datasets(evidence)
    client = mlflow_client.client(timeout=60, retries=3)
    with versions.explained(f"registering {config.model_name}", mend=AGAIN):
        tags = proof.tags(merge_key, champion_version, evidence | {"adapter_uri": adapter_uri})
        version, created = _find_or_create(client, config.model_name, merge_key, merged_uri, adapter_uri, tags)
        publish.turn_to(version.source)
        if not _is_whole(version):
            whole = _complete(version, key, made_from=_owner(client, version))
            proof.log_run(client, version, data, reports)
            _mark_whole(client, version, whole, key)
        outcome = _settle(client, version, champion_version, created)
    number = str(version.version)
    champion = outcome == versions.CHAMPION
    alias = f"@{versions.CHAMPION}" if champion else f"/{number}"
    log(f"{config.model_name} version {number} is registered, {outcome if not champion else 'alias champion'}")
    return Result(number, f"models:/{config.model_name}{alias}", outcome)


def _find_or_create(
    client: Any, name: str, merge_key: str, merged_uri: str, adapter_uri: str, tags: dict[str, str]
) -> tuple[Any, bool]:
    """The one version of this key and name, and whether it was made here.

    MLflow cannot create a version only if there is none: so create, look again, and the lowest number stays. The others
    are taken back, also those that an attempt cut short has left.
    """
    existing = versions.of_key(client, merge_key, name)
    mine = None
    if not existing:
        uri, files = publish.place(attempts.read(merged_uri), adapter_uri, merge_key)
        publish.turn_to(uri)
        # MLflow takes any address, one where nothing lies too.
        transfer.check_files(uri, files, "merged model", "run the merge again")
        _create_model(client, name)
        run = proof.find_or_start_run(client, name, merge_key)
        mine = client.create_model_version(name, source=uri, run_id=run, tags=tags, await_creation_for=0)
        existing = versions.of_key(client, merge_key, name)
    first, *others = existing
    for other in others:
        if manifest.MANIFEST_TAG not in other.tags:
            _delete_version(client, name, other.version)
    if mine is not None or others:
        proof.remove_other_runs(client, name, merge_key, first.run_id)
    return first, mine is not None and mine.version == first.version


def _create_model(client: Any, name: str) -> None:
    import mlflow

    try:
        client.create_registered_model(name)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _delete_version(client: Any, name: str, number: str) -> None:
    import mlflow

    try:
        client.delete_model_version(name, number)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _is_whole(version: Any) -> bool:
    """Whether registration came to its end, and the files are still there.

    Raises:
        InputError: it did, and they are not.
    """
    if manifest.MANIFEST_TAG not in version.tags:
        return False
    try:
        manifest.of_version(version)
    except InputError as error:
        raise InputError(f"{error}; delete version {version.version} of {version.name} and run again") from None
    return True


def _owner(client: Any, version: Any) -> Any:
    """The earliest version whose files lie where this one's do, under whatever name: they are made from its tags."""
    found = versions.of_key(client, version.tags[versions.KEY_TAG])
    return next((item for item in found if item.source == version.source), version)


def _complete(version: Any, key: str, made_from: Any) -> manifest.Registered:
    """Lays the files beside the model, then their manifest, then the signature."""
    uri = version.source
    transfer.check_address(uri, f"{version.name} version {version.version}")
    whole = _laid(uri) or _lay(uri, made_from)
    if key:
        storage.write_bytes(storage.join(uri, signing.SIGNATURE), signing.sign(whole.signed_files, key))
    return whole


def _mark_whole(client: Any, version: Any, whole: manifest.Registered, key: str) -> None:
    """Tags the version with the manifest's hash: from now on it is registered."""
    signed = signing.fingerprint(key) if key else "no"
    log(f"{len(whole.files)} files, {whole.size / 1e9:.2f} GB, " + (f"signed by {signed[:12]}" if key else "unsigned"))
    for tag, value in {"qlora.signed_by": signed, manifest.MANIFEST_TAG: whole.sha256}.items():
        versions.repeated(client.set_model_version_tag, version.name, version.version, tag, value)


def _laid(uri: str) -> manifest.Registered | None:
    """The manifest that lies there, if all it lists does: an earlier attempt's, or that of another name."""
    if manifest.MANIFEST not in storage.sizes(uri):
        return None
    found = manifest.read(uri)
    transfer.check_files(uri, found.files, "registered model", f"delete {uri}/{manifest.MANIFEST} and run again")
    return found


def _lay(uri: str, owner: Any) -> manifest.Registered:
    files = publish.files(uri)
    made = mlflow_files.make(uri, files, owner.creation_timestamp, owner.tags[versions.KEY_TAG])
    made["README.md"] = model_card.make(owner.name, proof.said(owner))
    for name, content in made.items():
        storage.write_bytes(storage.join(uri, name), content)
    whole = manifest.make(uri, files | {name: manifest.entry(content) for name, content in made.items()})
    storage.write_bytes(storage.join(uri, manifest.MANIFEST), whole.content)
    return whole


def _settle(client: Any, version: Any, compared_with: str, created: bool) -> str:
    """Gives the version its alias; says `champion`, or why it stays `candidate`.

    MLflow cannot move an alias only if it still points where it did. So of versions that are registered at the same
    time the earliest goes first: a version that sees an earlier one at work stays candidate. One that comes back to be
    judged anew sees any other one at work.
    """
    name, number = version.name, str(version.version)
    before = mlflow_client.champion(client, name)
    if not (created or version.tags.get(versions.OUTCOME_TAG) == versions.PENDING or before == number):
        versions.repeated(client.set_model_version_tag, name, number, versions.OUTCOME_TAG, versions.PENDING)
    elif before != number:
        versions.repeated(client.set_registered_model_alias, name, versions.CANDIDATE, number)
    others = [
        item.version
        for item in versions.versions(
            client, f"name = '{name}' and tags.`{versions.OUTCOME_TAG}` = '{versions.PENDING}'"
        )
        if item.tags.get(versions.KEY_TAG) != version.tags[versions.KEY_TAG]
        and (not created or int(item.version) < int(number))
        and time.time() * 1000 - item.last_updated_timestamp < AT_WORK_MS
    ]
    before = mlflow_client.champion(client, name)
    if before == number:
        outcome = versions.CHAMPION
    elif others:
        outcome = f"candidate: version {others[0]} was being registered at the same time"
    elif before != compared_with:
        outcome = f"candidate: {_called(before)} now, the gate compared with {_called(compared_with)}"
    else:
        versions.move_champion(client, name, number, before)
        outcome = versions.CHAMPION
    versions.repeated(client.set_model_version_tag, name, number, versions.OUTCOME_TAG, outcome)
    return outcome


def _called(version: str) -> str:
    return f"version {version}" if version else "none"
