"""MLflow, as plan_run and register_model reach it."""

import os
from typing import Any

from components.core import storage
from components.core.errors import InputError

URI_VARIABLE = "MLFLOW_TRACKING_URI"


def client(timeout: int = 10, retries: int = 1) -> Any:
    """An MLflow client that answered a first question.

    Args:
        timeout: seconds to wait for an answer.
        retries: how often a failed request is repeated.

    Raises:
        InputError: MLFLOW_TRACKING_URI is not set, or nothing answers there.
    """
    uri = os.environ.get(URI_VARIABLE, "")
    if not uri:
        raise InputError(f"{URI_VARIABLE} is not set: give the address of an MLflow server or sqlite:///FILE")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3"):
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)
    import mlflow
    from sqlalchemy.exc import SQLAlchemyError

    try:
        tracking = mlflow.MlflowClient(uri, uri)
        tracking.search_registered_models(max_results=1)
    except (mlflow.MlflowException, OSError, SQLAlchemyError) as error:
        reason = str(error).strip().splitlines()[0].replace(uri, hide_password(uri))[:200]
        raise InputError(f"MLflow at {hide_password(uri)} does not answer: {reason}") from None
    if uri.startswith("http") and not storage.is_s3(storage.root()):
        raise InputError(
            f"an MLflow server cannot read the local store {storage.root()}: set {storage.STORE_VARIABLE} to s3://..."
        )
    return tracking


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
        raise
