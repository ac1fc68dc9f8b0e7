"""The connection to MLflow, and what its errors become."""

import contextlib
import os
import re
import socket
import ssl
import textwrap
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.runtime import load_libraries, log
from qlora_pipelines.components.core.store import addresses, models_store, storage

URI_VARIABLE = "MLFLOW_TRACKING_URI"
OLDEST = (3, 10)
"""Older servers have known holes: files of the server can be read, and authentication can be passed by."""
NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for what does not exist: the second is that of an unknown alias."""


def connect(timeout: int = 10, retries: int = 1, *, with_store: bool = True) -> Any:
    """An MLflow client, after a first request to a server that is new enough.

    Args:
        timeout: seconds to wait for an answer.
        retries: how often a failed request is repeated.
        with_store: whether models of the store are to be registered, so that the server's readers must reach it.

    Raises:
        InputError: MLFLOW_TRACKING_URI is not set, nothing answers there, or it is too old.
    """
    uri = os.environ.get(URI_VARIABLE, "")
    if not uri:
        raise InputError(f"{URI_VARIABLE} is not set: give the address of an MLflow server or sqlite:///FILE")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3"):
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)
    load_libraries("mlflow")
    import mlflow
    from sqlalchemy.exc import SQLAlchemyError

    server, remote = f"MLflow at {hide_password(uri)}", uri.startswith("http")
    try:
        if remote:
            _check_server(uri, server, timeout)
        client = mlflow.MlflowClient(uri, uri)
        client.search_registered_models(max_results=1)
    except (mlflow.MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        raise InputError(f"{server} does not answer: {reason(error)}") from None
    except ImportError as error:
        raise InputError(f"{server} needs a driver: {error}") from None
    if remote and with_store and not models_store.root() and not storage.is_remote(storage.root()):
        raise InputError(
            f"an MLflow server cannot read the local store {storage.root()}:"
            f" set {storage.STORE_VARIABLE} to {addresses.KINDS}"
        )
    return client


def _check_server(uri: str, server: str, timeout: int) -> None:
    """Asks for /version, with the login of all other requests: a server with logins answers nothing without."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET", timeout=timeout, raise_on_status=False)
    if answer.status_code in (401, 403):
        raise InputError(f"{server} refuses this login: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if answer.status_code >= 500:
        raise InputError(f"{server} does not answer: HTTP status {answer.status_code}")
    version = re.match(r"(\d+)\.(\d+)\S*", answer.text[:100].strip())
    if version is None:
        raise InputError(f"{server} does not say its version; is this an MLflow server?")
    if (int(version[1]), int(version[2])) < OLDEST:
        raise InputError(
            f"{server} is {version[0]}, which has known security holes:"
            f" upgrade it to {'.'.join(map(str, OLDEST))} or newer"
        )


def wait(seconds: int) -> None:
    """Waits until the server of MLFLOW_TRACKING_URI answers, whatever it says.

    Raises:
        InputError: that is no server's address, or nothing answers in time.
    """
    from mlflow import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    uri, until, why = os.environ.get(URI_VARIABLE, ""), time.monotonic() + seconds, ""
    if not uri.startswith("http"):
        raise InputError(f"{URI_VARIABLE} is {hide_password(uri)!r}: give the address of an MLflow server, http://...")
    while True:
        try:
            server = get_default_host_creds(uri)
            answer = http_request(server, "/health", "GET", timeout=10, max_retries=0, raise_on_status=False)
            if answer.status_code < 500:
                return
            said = f"HTTP status {answer.status_code}"
        except MlflowException as error:
            said = reason(error)
        if time.monotonic() >= until:
            raise InputError(f"MLflow at {hide_password(uri)} does not answer: {said}")
        if said != why:
            log(f"waiting for MLflow at {hide_password(uri)}: {said}")
        why = said
        time.sleep(2)


def check_registering(client: Any, model_name: str = "") -> None:
    """Registers a model under a random name and deletes it again.

    Args:
        client: of MLflow.
        model_name: a registered model, if it is there already, that this login must be able to register versions of.

    Raises:
        InputError: this login may not.
    """
    name = f"qlora-probe-{uuid.uuid4().hex}"
    with mlflow_errors("registering a model and deleting it again"):
        client.create_registered_model(name)
        client.delete_registered_model(name)
    if model_name:
        with mlflow_errors(f"registering versions of {model_name}"), suppress(*NOT_FOUND):
            # Who may create a version may delete a tag, and to delete one that is not there changes nothing.
            client.delete_registered_model_tag(model_name, name)


@contextlib.contextmanager
def mlflow_errors(what: str, fix: str = "") -> Iterator[None]:
    """Turns what MLflow raises into one line.

    Args:
        what: what was being done, for the message.
        fix: what to do, for the message.

    Raises:
        InputError: the reason, and what to do.
    """
    import mlflow
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (mlflow.MlflowException, RequestException, SQLAlchemyError) as error:
        code = getattr(error, "error_code", "")
        if code == "PERMISSION_DENIED":
            raise InputError(f"{what}: MLflow gives this login no permission for it") from None
        source = "MLflow" if code else "MLflow does not answer"
        raise InputError(f"{what}: {source}: {reason(error)}{fix and f'; {fix}'}") from None


@contextlib.contextmanager
def suppress(*codes: str) -> Iterator[None]:
    """Continues after the block where MLflow refuses a request in it with one of these error codes."""
    import mlflow

    try:
        yield
    except mlflow.MlflowException as error:
        if error.error_code not in codes:
            raise


def retry(write: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Makes a write that changes nothing when made twice, again where MLflow's database refuses it.

    Two clients that write the same alias or tag at the same time both insert it, and one of them is refused.
    """
    for seconds in (0.2, 0.4, 0.6):
        with suppress("BAD_REQUEST", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
            return write(*args, **kwargs)
        time.sleep(seconds)
    return write(*args, **kwargs)


def page(name: str, version: str) -> str:
    """The web page of a version; '' where the registry is no server."""
    uri = hide_password(os.environ.get(URI_VARIABLE, "")).rstrip("/")
    return f"{uri}/#/models/{urllib.parse.quote(name, safe='')}/versions/{version}" if uri.startswith("http") else ""


def hide_password(uri: str) -> str:
    """A URI without the user and password it may carry."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rsplit('@', 1)[-1]}" if separator else uri


def reason(error: Exception) -> str:
    """Why it failed, in one line: what the connection said, or else the error's first line, without passwords."""
    deepest: BaseException = error
    while inner := deepest.__cause__ or deepest.__context__:
        deepest = inner
    if isinstance(deepest, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        return deepest.strerror or str(deepest) or type(deepest).__name__
    line = first_line(error)
    login = os.environ.get(URI_VARIABLE, "").partition("://")[2].rpartition("@")[0]
    for secret in filter(None, (login, os.environ.get("MLFLOW_TRACKING_PASSWORD"))):
        line = line.replace(f"{secret}@", "").replace(secret, "...")
    return textwrap.shorten(re.sub(r"://[^@/\s]*@", "://", line), 200, placeholder=" ...")
