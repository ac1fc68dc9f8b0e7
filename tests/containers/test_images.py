"""What the images hold, seen from inside them."""

import json
from typing import Any

from tests.containers.engine import ROOT

CODE = (ROOT / "images" / "smoke.py").read_text()


def inside(image: str) -> dict[str, Any]:
    import docker

    client = docker.from_env()
    output = client.containers.run(image, ["python", "-c", CODE], remove=True, network_mode="none")
    found: dict[str, Any] = json.loads(output.decode().splitlines()[-1])
    return found


def attributes(image: str) -> dict[str, Any]:
    import docker

    found: dict[str, Any] = docker.from_env().images.get(image).attrs
    return found


def check(image: str) -> dict[str, Any]:
    found, config = inside(image), attributes(image)["Config"]
    assert found["user"] == 1000 and len(found["steps"]) >= 7
    assert image.endswith(f":{found['qlora-pipelines']}")
    assert config["User"] == "1000:1000" and not config.get("Entrypoint")
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == found["qlora-pipelines"]
    assert len(labels["org.opencontainers.image.revision"]) == 40
    print(f"{image}: {attributes(image)['Size'] / 1e9:.2f} GB, torch {found['torch']}, {found['library']}")
    return found


def test_the_cpu_image_has_no_cuda(cpu_image: str) -> None:
    assert check(cpu_image)["cuda"] == ""


def test_the_cuda_image_has_cuda_and_bitsandbytes_library_for_it(cuda_image: str) -> None:
    found = check(cuda_image)
    assert found["cuda"] and found["library"] == f"libbitsandbytes_cuda{found['cuda'].replace('.', '')}.so"
