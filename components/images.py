"""The only place that names an image. The tag is the project's version."""

import os
from importlib.metadata import version

_REGISTRY = os.environ.get("QLORA_IMAGE_REGISTRY", "ghcr.io/qlora-pipelines")
_TAG = version("qlora-pipelines")

CPU = f"{_REGISTRY}/cpu:{_TAG}"
"""For steps that need no GPU: without CUDA."""
CUDA = f"{_REGISTRY}/cuda:{_TAG}"
"""For steps that compute: training, evaluation, merge."""
