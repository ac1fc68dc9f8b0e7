"""MLflow, as plan_run and register_model reach it."""

import os
import re
import socket
import ssl
import textwrap
import uuid
from typing import Any

from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.store import storage, transfer

URI_VARIABLE = "MLFLOW_TRACKING_URI"
OLDEST = (3, 10)
"""Older servers have known holes: files of the server can be read, and authentication can be passed by."""


def client(timeout: int = 10, retries: int = 1, *, with_store: bool = True) -> Any:
    """An MLflow client that answered a first question, from a server that is new enough.

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
    if uri.startswith("http"):
        _check_version(uri, timeout)
    import mlflow
    from sqlalchemy.exc import SQLAlchemyError

    try:
        tracking = mlflow.MlflowClient(uri, uri)
        tracking.search_registered_models(max_results=1)
    except (mlflow.MlflowException, OSError, SQLAlchemyError) as error:
        raise InputError(f"MLflow at {hide_password(uri)} does not answer: {reason(error)}") from None
    except ImportError as error:
        raise InputError(f"MLflow at {hide_password(uri)} needs a driver: {error}") from None
    elsewhere = transfer.MODELS_VARIABLE in os.environ
    if with_store and uri.startswith("http") and not elsewhere and not storage.is_s3(storage.root()):
        raise InputError(
            f"an MLflow server cannot read the local store {storage.root()}: set {storage.STORE_VARIABLE} to s3://..."
        )
    return tracking


def _check_version(uri: str, timeout: int) -> None:
    """Asks the server's /version, logged in as every other request: a server with logins answers nothing else."""
    import mlflow
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(get_default_host_creds(uri), "/version", "GET", timeout=timeout, raise_on_status=False)
    except (mlflow.MlflowException, OSError, ValueError) as error:
        raise InputError(f"MLflow at {hide_password(uri)} does not answer: {reason(error)}") from None
    if answer.status_code in (401, 403):
        raise InputError(
            f"MLflow at {hide_password(uri)} refuses this login: check MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD"
        )
    if answer.status_code >= 500:
        raise InputError(f"MLflow at {hide_password(uri)} does not answer: HTTP status {answer.status_code}")
    found = answer.text[:100].strip()
    try:
        numbers = tuple(int(part) for part in found.split(".")[:2])
    except ValueError:
        numbers = ()
    if len(numbers) < 2:
        raise InputError(f"MLflow at {hide_password(uri)} does not say its version; is this an MLflow server?")
    if numbers < OLDEST:
        raise InputError(
            f"MLflow at {hide_password(uri)} is {found}, which has known security holes:"
            f" upgrade it to {'.'.join(map(str, OLDEST))} or newer"
        )


def hide_password(uri: str) -> str:
    """A URI without the user and password it may carry."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rsplit('@', 1)[-1]}" if separator else uri


def champion(tracking: Any, model_name: str) -> str:
    """The version that carries the alias `champion` today, or '' where there is none."""
    import mlflow

    try:
        return str(tracking.get_model_version_by_alias(model_name, "champion").version)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return ""
        raise InputError(f"MLflow: {reason(error)}") from None


def check_registering(tracking: Any) -> None:
    """Registers a model of a name of its own and deletes it again.

    Raises:
        InputError: this user may not.
    """
    import mlflow

    name = f"qlora-probe-{uuid.uuid4().hex}"
    try:
        tracking.create_registered_model(name)
        tracking.delete_registered_model(name)
    except mlflow.MlflowException as error:
        raise InputError(
            f"MLflow does not let this user register a model: {reason(error)}; give it the right to create and delete"
        ) from None


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
