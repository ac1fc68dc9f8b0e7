"""One engine a session, with the images built from this checkout.

With QLORA_TEST_CUDA=0 the cuda image is not built: its steps run in the cpu image, which holds the same code.
"""

import os
from collections.abc import Iterator

import pytest

from tests.containers import engine
from tests.integration.conftest import mlflow_server, own_store, s3_store

os.environ["QLORA_IMAGE_REGISTRY"] = "localhost/qlora-test"  # before qlora_pipelines.components.images reads it
WITH_CUDA = os.environ.get("QLORA_TEST_CUDA") != "0"

__all__ = ["mlflow_server", "own_store", "s3_store"]


@pytest.fixture(scope="session")
def container_engine() -> Iterator[dict[str, str]]:
    """The environment that names the engine; it is set, too."""
    try:
        with engine.started() as environment, pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            yield environment
    except engine.NoEngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cpu_image(container_engine: dict[str, str]) -> str:
    """The image of the steps that need no GPU."""
    return _built("cpu", container_engine)


@pytest.fixture(scope="session")
def cuda_image(container_engine: dict[str, str]) -> str:
    """The image of the steps that compute; several GB are downloaded for it."""
    if not WITH_CUDA:
        pytest.skip("QLORA_TEST_CUDA=0: the cuda image is not built")
    return _built("cuda", container_engine)


@pytest.fixture(scope="session")
def step_images(cpu_image: str, request: pytest.FixtureRequest) -> None:
    """An image for every step."""
    if WITH_CUDA:
        request.getfixturevalue("cuda_image")
    else:
        import docker

        from qlora_pipelines.components import images

        name, _, tag = images.CUDA.rpartition(":")
        docker.from_env().images.get(cpu_image).tag(name, tag)


def _built(target: str, environment: dict[str, str]) -> str:
    from qlora_pipelines.components import images

    try:
        engine.build(target, environment)
    except engine.NoEngineError as error:
        pytest.skip(str(error))
    return {"cpu": images.CPU, "cuda": images.CUDA}[target]
