"""The connection to each object store: endpoint, credentials, time limits; and what it answers, in one line.

Endpoint and credentials are attributes of a connection. They come from the environment, by the names that each cloud's
own tools use: boto3's (`AWS_ENDPOINT_URL_S3`, `AWS_ACCESS_KEY_ID`, profiles, roles of pods and machines), Google's
(`GOOGLE_APPLICATION_CREDENTIALS`, `GOOGLE_BASE_URL`), Azure's (`AZURE_STORAGE_ACCOUNT_NAME`,
`AZURE_STORAGE_ACCESS_KEY`, `AZURE_STORAGE_SAS_TOKEN`, `AZURE_STORAGE_ENDPOINT`, workload identity).
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_pipelines.components.core.errors import InputError, TransientError, first_line
from qlora_pipelines.components.core.store import models_store
from qlora_pipelines.components.core.store.addresses import Location, locate

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from obstore.store import AzureStore, GCSStore, S3Store
else:
    S3Client = Any

RETRY_FOR = 45
"""Seconds after which a request is not made again. With the last one's own limit, a store that is away for a minute
is given up on."""
_CLIENT: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "15m"}
"""`read_timeout` is for each read, so it ends what stalls; `timeout` is for a whole request and would cut slow ones."""
_RETRY: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=RETRY_FOR),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 2},
}
_NEEDED = {
    "s3": "s3:GetObject and s3:ListBucket on {root}, and to write there s3:PutObject, s3:DeleteObject and"
    " s3:ListBucketMultipartUploads",
    "gs": "roles/storage.objectViewer on {root}, and to write there roles/storage.objectAdmin",
    "az": "the role Storage Blob Data Reader on {root}, and to write there Storage Blob Data Contributor",
}


def connect(uri: str) -> "S3Store | GCSStore | AzureStore":
    """The connection for an address; one for each bucket and endpoint in a process, for several threads."""
    place = locate(uri)
    with errors(uri):
        if place.scheme == "s3":
            return _s3(place.bucket, endpoint(uri))
        if place.scheme == "gs":
            return _gcs(place.bucket, _google())
        return _azure(place.bucket, account(place), azure_endpoint(place))


def endpoint(uri: str) -> str:
    """The S3 endpoint of an address; '': boto3's default."""
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    return models_store.endpoint_of(uri) or own


def account(place: Location) -> str:
    """The Azure storage account of a place.

    Raises:
        InputError: neither the address nor the environment names one.
    """
    found = place.account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not found:
        raise InputError(f"{place.root}: set AZURE_STORAGE_ACCOUNT_NAME, or give the account in an abfss:// address")
    return found


def azure_endpoint(place: Location) -> str:
    """The blob service of a place: that of the cloud which the address names, else of Azure's public cloud.

    AZURE_STORAGE_ENDPOINT names it for one account, that of AZURE_STORAGE_ACCOUNT_NAME or of its own host.
    """
    name, own = account(place), os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    if own and (name == os.environ.get("AZURE_STORAGE_ACCOUNT_NAME") or f"//{name}." in own):
        return own
    return f"https://{name}.blob.core.{place.cloud or 'windows.net'}"


def server(uri: str) -> str:
    """The web address of the server that an address is on."""
    place = locate(uri)
    if place.scheme == "s3":
        return str(client(endpoint(uri)).meta.endpoint_url)
    if place.scheme == "gs":
        return _google() or "https://storage.googleapis.com"
    return azure_endpoint(place)


def forget() -> None:
    """Makes every connection anew from now on: credentials in the environment are others."""
    for made in (client, _s3, _gcs, _azure):
        made.cache_clear()


def authorities() -> str:
    """The file of further certificates to trust, by the names that boto3 and others read; '' for none."""
    names = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _google() -> str:
    return os.environ.get("GOOGLE_BASE_URL", "")


@functools.cache
def client(endpoint: str = "") -> S3Client:
    """boto3's client for an S3 endpoint, for what obstore cannot do: list and abort uploads, copy objects of any size.

    It also knows, from the environment and from profiles, the region and the endpoint.
    """
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=5, read_timeout=30)
    return boto3.client("s3", endpoint_url=endpoint or None, config=config)


@functools.cache
def _s3(bucket: str, endpoint: str) -> "S3Store":
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    known = client(endpoint).meta
    address, virtual = known.endpoint_url, False
    # Amazon wants the bucket in the host's name; its certificate has no names with further dots.
    if re.search(r"\.amazonaws\.com(\.cn)?$", address) and "." not in bucket:
        address, virtual = address.replace("://", f"://{bucket}."), True
    try:
        credentials = Boto3CredentialProvider(boto3.Session())
    except ValueError:
        raise TransientError(
            f"s3://{bucket}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
        ) from None
    return S3Store(
        bucket,
        aws_endpoint_url_s3=address,  # `endpoint` would give way to the variable of that name
        virtual_hosted_style_request=virtual,
        region=known.region_name if known.region_name != "aws-global" else "us-east-1",
        credential_provider=credentials,
        client_options=_options(address),
        retry_config=_RETRY,
    )


@functools.cache
def _gcs(bucket: str, emulator: str) -> "GCSStore":
    from obstore.store import GCSStore

    own: dict[str, Any] = {"base_url": emulator} if emulator else {}
    return GCSStore(bucket, client_options=_options(emulator), retry_config=_RETRY, **own)


@functools.cache
def _azure(container: str, account: str, endpoint: str) -> "AzureStore":
    from obstore.store import AzureStore

    options = _options(endpoint)
    return AzureStore(container, account_name=account, endpoint=endpoint, client_options=options, retry_config=_RETRY)


def _options(address: str) -> Any:
    found = _CLIENT | {"allow_http": address.startswith("http://")}
    return found | ({"root_certificate": Path(file).read_bytes()} if (file := authorities()) else {})


@contextlib.contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turns what the stores' clients raise into one line that names `uri` and says what to do.

    Raises:
        TransientError: the store refuses, or does not answer: another try may pass.
        InputError: there is no such bucket or object; an object is another than the listed one; a name cannot be read.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore import exceptions

    try:
        yield
    except exceptions.PreconditionError:
        raise InputError(f"{uri} changed since it was listed; start a new run") from None
    except exceptions.InvalidPathError as error:
        raise InputError(f"{uri}: {_bad_name(error)}") from None
    except ValueError as error:  # of an address that obstore cannot parse, or of the connection's options
        why = _bad_name(error) if "parse path" in str(error) else first_line(error)
        raise InputError(f"{uri}: {why}") from None
    except (FileNotFoundError, exceptions.BaseError, ClientError, BotoCoreError, Boto3Error, OSError) as error:
        raise _explained(uri, error) from None


def _bad_name(error: Exception) -> str:
    what = (
        first_line(error).removeprefix("Could not parse path: ").removeprefix("Encountered object with invalid path: ")
    )
    return f"{what}; an object of that name cannot be a file: rename or remove it"


def _explained(uri: str, error: Exception) -> InputError:
    """The line for an error: by the code in the store's answer, which is XML, where there is one."""
    from botocore.exceptions import ClientError
    from obstore import exceptions

    text = str(error)
    code = error.response["Error"].get("Code", "") if isinstance(error, ClientError) else _tag("Code", text)
    place = locate(uri)
    if code in ("NoSuchBucket", "ContainerNotFound"):
        return InputError(f"{uri}: there is no such bucket; check the address, the endpoint and the credentials")
    if isinstance(error, FileNotFoundError) or code in ("NoSuchKey", "BlobNotFound", "404"):
        return InputError(f"{uri}: there is no such object")
    denied = isinstance(error, exceptions.PermissionDeniedError) or code in ("AccessDenied", "403", "Forbidden")
    if denied and code in (
        "",
        "AccessDenied",
        "403",
        "Forbidden",
        "AuthorizationFailure",
        "AuthorizationPermissionMismatch",
    ):
        needed = _NEEDED[place.scheme if place.scheme in _NEEDED else "az"].format(root=place.root)
        return TransientError(
            f"{uri}: access denied (403); these credentials need {needed}; a login to MLflow does not give them"
        )
    said = f"{code}: {_tag('Message', text)}".removesuffix(": ") if code else _reason(text)
    return TransientError(f"{uri}: {said}; check the address, the endpoint and the credentials")


def _tag(name: str, text: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    return found[1].strip().split("\n")[0] if found and found[1].strip() else ""


def _reason(text: str) -> str:
    """What an error without an answer says: its first line, without what repeats the address and counts retries."""
    line = text.strip().replace(":\n", ": ").split("\n")[0] or "no answer"
    if "without LOCATION" in line:
        return "the bucket is in another region; set AWS_DEFAULT_REGION"
    return re.sub(r"^Generic \w+ error: |Error performing .*? - |, after \d+ retries.*?(?= - )", "", line)
