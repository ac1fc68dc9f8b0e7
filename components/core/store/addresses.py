"""Addresses of files: local paths, and objects in a store by scheme.

    s3://bucket/key                                     Amazon S3 and all that speaks its API
    gs://bucket/key                                     Google Cloud Storage
    az://container/key                                  Azure Blob Storage; the account is AZURE_STORAGE_ACCOUNT_NAME
    abfss://container@account.dfs.core.windows.net/key  the same with the account in the address, as MLflow writes it
    wasbs://container@account.blob.core.windows.net/key

Whatever else begins with a scheme is refused by name: taken for a local path, it would be "nothing there".
"""

import re
from pathlib import Path
from typing import NamedTuple

from qlora_pipelines.components.core.errors import InputError

KINDS = "an s3://, gs:// or az:// prefix"
"""What a message calls an address that is not local."""
_WITH_ACCOUNT = ("abfss", "wasbs")
AZURE_CLOUDS = "windows.net|chinacloudapi.cn|usgovcloudapi.net"
"""The clouds whose accounts an address can name; the same that MLflow's wasbs:// can."""
_AZURE_HOST = re.compile(rf"(?P<account>[^.@/]+)\.(dfs|blob)\.core\.(?P<cloud>{AZURE_CLOUDS})")
_REMOTE = ("s3", "gs", "az", *_WITH_ACCOUNT)
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>/{1,2})(?P<rest>.*)", re.DOTALL)
_INSTEAD = {
    "s3": ("s3a", "s3n", "minio", "cos", "oss", "r2", "ceph"),
    "gs": ("gcs",),
    "az": ("adl", "azure", "blob"),
    "abfss": ("abfs",),
    "wasbs": ("wasb",),
}
"""Schemes that others use, by the one to write here."""


class Location(NamedTuple):
    """A place in an object store. `root` is the address of its bucket.

    `account` and `cloud` are those of Azure that the address names; '' where it names none, and for the others.
    """

    scheme: str
    root: str
    bucket: str
    account: str
    key: str
    cloud: str = ""


def parse(uri: str) -> Location | None:
    """The place in an object store that an address names; None where it is local.

    Raises:
        InputError: its scheme is not read here, or it names no bucket.
    """
    found = _SCHEME.fullmatch(uri)
    if found is None or uri.startswith("file://"):
        return None
    scheme, rest = found["scheme"], found["rest"]
    if scheme not in _REMOTE or found["slashes"] != "//":
        raise InputError(f"{uri}: {scheme}:{found['slashes']} is not read here{_hint(scheme.lower(), rest)}")
    place, _, key = rest.partition("/")
    bucket, account, cloud = place, "", ""
    if scheme in _WITH_ACCOUNT:
        bucket, _, host = place.partition("@")
        if named := _AZURE_HOST.fullmatch(host):
            account, cloud = named["account"], named["cloud"]
        elif host:
            raise InputError(
                f"{uri}: {host} is no storage account; write account.dfs.core.windows.net, or another cloud's"
            )
    if not bucket or (scheme in _WITH_ACCOUNT and not account):
        form = "container@account.dfs.core.windows.net" if scheme in _WITH_ACCOUNT else "bucket"
        raise InputError(f"{uri}: names no place; write {scheme}://{form}/prefix")
    return Location(scheme, f"{scheme}://{place}", bucket, account, key, cloud)


def _hint(scheme: str, rest: str) -> str:
    own = next((own for own, others in _INSTEAD.items() if scheme in others), scheme if scheme in _REMOTE else "")
    if own in _WITH_ACCOUNT:
        return f"; give it as {own}://container@account...windows.net/prefix"
    if own:
        return f"; give it as {own}://{rest.lstrip('/')}"
    return f"; give a local path or {KINDS}"


def locate(uri: str) -> Location:
    """The place that the address of an object names.

    Raises:
        InputError: it names none.
    """
    found = parse(uri)
    if found is None:
        raise InputError(f"{uri}: is a local path; give {KINDS}")
    return found


def is_remote(uri: str) -> bool:
    """Whether an address is in an object store; otherwise it is a local path.

    Raises:
        InputError: its scheme is neither.
    """
    return parse(uri) is not None


def local_path(uri: str) -> Path:
    """The path of a local address (`file://` is understood)."""
    return Path(uri.removeprefix("file://")).absolute()


def join(uri: str, *parts: str) -> str:
    """Appends path parts to an address."""
    return "/".join([uri.rstrip("/"), *parts])


def check(uri: str, what: str) -> None:
    """Refuses an address that would be taken for something that it is not.

    Args:
        uri: what to check.
        what: whose address it is, for the message.

    Raises:
        InputError: another scheme, or a step upwards in the path.
    """
    try:
        parse(uri)
    except InputError as error:
        raise InputError(f"{what} {error}") from None
    if ".." in uri.split("/"):
        raise InputError(f"{what} {uri}: an address may not contain ..")
