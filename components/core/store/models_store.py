"""Where registered models are kept, if not in the store itself: another prefix, perhaps on another S3 endpoint."""

import os

VARIABLE = "QLORA_MODELS_STORE"
"""A prefix for registered models, where the registry's readers have no rights on the store itself."""
_SOURCES: set[str] = set()
"""The sources of versions that this process met."""


def root() -> str:
    """The prefix, without a slash at its end; '' where models are registered where they are in the store."""
    return os.environ.get(VARIABLE, "").rstrip("/")


def endpoint() -> str:
    """The S3 endpoint that MLflow's clients use, where it is another than the store's; else ''."""
    mlflow = os.environ.get("MLFLOW_S3_ENDPOINT_URL", "").rstrip("/")
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    return mlflow if mlflow != own.rstrip("/") else ""


def endpoint_of(uri: str) -> str:
    """The S3 endpoint of an address that is a registered model's: MLflow's; '' for all others."""
    prefixes = {*_SOURCES, root()} - {""}
    return (
        endpoint()
        if uri.startswith("s3://") and any(uri == prefix or uri.startswith(f"{prefix}/") for prefix in prefixes)
        else ""
    )


def note(source: str) -> None:
    """Says that a version's files are at `source`, so that from now on they are read where MLflow's clients do."""
    _SOURCES.add(source.rstrip("/"))
