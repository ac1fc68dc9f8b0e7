"""Where registered models are kept, if not in the store itself: another prefix, perhaps on another S3 endpoint."""

import os

from qlora_pipelines.components.core.store import s3

VARIABLE = "QLORA_MODELS_STORE"
"""An s3:// prefix for registered models, where the registry's readers have no rights on the store itself."""


def root() -> str:
    """The prefix, without a slash at its end; '' where models are registered where they are in the store."""
    return os.environ.get(VARIABLE, "").rstrip("/")


def endpoint() -> str:
    """The S3 endpoint that MLflow's clients use, where it is another than the store's; else ''."""
    mlflow = os.environ.get("MLFLOW_S3_ENDPOINT_URL", "").rstrip("/")
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    return mlflow if mlflow != own.rstrip("/") else ""


def use() -> None:
    """From now on this process reads and writes every s3:// address at that endpoint."""
    if found := endpoint():
        os.environ["AWS_ENDPOINT_URL_S3"] = found
        s3.client.cache_clear()
