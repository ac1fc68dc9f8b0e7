"""Servers of the other clouds' object stores: Azurite for Azure, and one that speaks Google's XML API.

Azurite is Microsoft's own emulator (npm: `azurite`); it checks signatures, and serves every call that obstore makes.

None of the emulators of Google Cloud Storage on PyPI, npm or among Go's modules serves obstore's calls: fake-gcs-server
and gcp-storage-emulator write by the JSON API only, obstore speaks the XML API. That one is S3's but for the names of
headers, so moto's S3 server answers it (`google_server.py`). What it cannot show is whether a login is accepted.
"""

import base64
import contextlib
import functools
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.integration import servers

CONTAINER = "models"  # moto does not decode the %2D that obstore writes for a hyphen in a bucket's name
ACCOUNT, KEY = "qloratest", base64.b64encode(b"a key of the tests' own account").decode()


@functools.cache
def azurite() -> list[str]:
    """The command that starts Azurite's blob service; empty where it is not installed."""
    if named := os.environ.get("AZURITE") or shutil.which("azurite-blob"):
        return [named]
    npx = [shutil.which("npx") or "", "--offline", "--no-install", "azurite-blob"]
    if npx[0] and subprocess.run([*npx, "--version"], capture_output=True, timeout=60).returncode == 0:
        return npx
    return []


@contextlib.contextmanager
def azure() -> Iterator[dict[str, str]]:
    """Azurite with one container; yields the environment in which az://CONTAINER is in it."""
    port = servers.free_port()
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    options = [
        "--blobPort",
        str(port),
        "--inMemoryPersistence",
        "--skipApiVersionCheck",
        "--silent",
        "--disableTelemetry",
    ]
    with (
        tempfile.TemporaryDirectory(prefix="azurite-") as folder,
        servers.process(
            [*azurite(), *options], Path(folder) / "log", os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
        ),
    ):
        servers.until(lambda: servers.listens(endpoint))
        _make_container(endpoint)
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCESS_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_ALLOW_HTTP": "true",
        }


def _make_container(endpoint: str) -> None:
    """What obstore has no call for.

    Signed as https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key says: the verb, eleven
    headers of which none is sent, the x-ms- ones, and the path with the account's name, which an emulator's has twice.
    """
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    signed += [f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}", "restype:container"]
    digest = hmac.digest(base64.b64decode(KEY), "\n".join(signed).encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    address = f"{endpoint}/{CONTAINER}?restype=container"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)).close()


@contextlib.contextmanager
def google() -> Iterator[dict[str, str]]:
    """A server of Google's XML API with one bucket; yields the environment in which gs://CONTAINER is in it.

    Its login is a service account's key in a file, as a pod has it; obstore signs its own tokens with that.
    """
    port = servers.free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.integration.google_server", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="google-") as folder,
        servers.process(command, Path(folder) / "log", os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}),
    ):
        servers.until(lambda: servers.listens(endpoint))
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{CONTAINER}", method="PUT")).close()
        (file := Path(folder) / "key.json").write_text(json.dumps(_service_account()))
        yield {"GOOGLE_BASE_URL": endpoint, "GOOGLE_APPLICATION_CREDENTIALS": str(file)}


def _service_account() -> dict[str, str]:
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "client_email": "tests@example.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "token_uri": "http://127.0.0.1:9/nobody-asks",
    }
