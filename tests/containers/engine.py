"""A container engine and the project's images for the tests: podman where it is installed, else Docker."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.servers import process

ROOT = Path(__file__).parents[2]
BOOTSTRAPPED = "localhost/qlora-test-python:bookworm"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


class NoEngineError(Exception):
    """Says why there is no engine, or no image to build from."""


@contextlib.contextmanager
def started() -> Iterator[dict[str, str]]:
    """An engine that answers the Docker API; yields the environment that names it.

    Raises:
        NoEngineError: there is none.
    """
    if shutil.which("podman"):
        with tempfile.TemporaryDirectory(prefix="podman-") as folder:
            yield from _podman(Path(folder))
        return
    import docker

    try:
        docker.from_env().ping()
    except docker.errors.DockerException:
        raise NoEngineError("no podman is installed, and no Docker answers at DOCKER_HOST") from None
    yield {}


def _podman(folder: Path) -> Iterator[dict[str, str]]:
    # Limits cannot be raised inside other containers, and runc runs where crun does not.
    runtime = '[engine]\nruntime = "runc"\n' if shutil.which("runc") else ""
    (folder / "containers.conf").write_text(f"[containers]\ndefault_ulimits = []\n{runtime}")
    socket = folder / "engine.sock"
    environment = {"CONTAINERS_CONF": str(folder / "containers.conf"), "DOCKER_HOST": f"unix://{socket}"}
    command = ["podman", "system", "service", "--time=0", f"unix://{socket}"]
    with process(command, folder / "engine.log", os.environ | environment):
        deadline = time.monotonic() + 30
        while not socket.exists():
            if time.monotonic() > deadline:
                raise NoEngineError(f"podman does not start: {(folder / 'engine.log').read_text()[-300:]}")
            time.sleep(0.1)
        yield environment


def build(target: str, environment: dict[str, str]) -> None:
    """Builds one of the images, as `make images` does.

    Raises:
        NoEngineError: there is no base image, and no way to make one.
    """
    flags = f"--isolation chroot --network host -v /etc/ssl/certs:/etc/ssl/certs:ro --build-arg PIP_CERT={CERTIFICATES}"
    if target == "cpu" and (wheels := _cpu_build_of_torch()):
        # PyTorch's own index cannot be reached everywhere; a folder with its CPU build then stands in.
        flags += f" -v {wheels}:/wheels:ro --build-arg UV_FIND_LINKS=/wheels --build-arg TORCH_BACKEND="
    own = {"BUILD_FLAGS": flags} | ({"PYTHON_IMAGE": base} if (base := _base(environment)) else {})
    subprocess.run([ROOT / "images" / "build.sh", target], env=os.environ | environment | own, check=True)


def _cpu_build_of_torch() -> str:
    """A folder of PIP_FIND_LINKS that holds a CPU build of PyTorch, or ''."""
    folders = os.environ.get("PIP_FIND_LINKS", "").split()
    return next((folder for folder in folders if any(Path(folder).glob("torch-*+cpu-*.whl"))), "")


def _base(environment: dict[str, str]) -> str:
    """A base image where the Dockerfile's own cannot be pulled: Debian, from its packages; else ''."""
    if not shutil.which("podman"):
        return ""

    def podman(*arguments: str, **options: Any) -> int:
        return subprocess.run(["podman", *arguments], env=os.environ | environment, check=False, **options).returncode

    lines = (ROOT / "images" / "Dockerfile").read_text().splitlines()
    named = next(line.partition("=")[2] for line in lines if line.startswith("ARG PYTHON_IMAGE="))
    if podman("image", "exists", BOOTSTRAPPED) == 0:
        return BOOTSTRAPPED
    if podman("pull", named, capture_output=True) == 0:
        return ""
    if not shutil.which("debootstrap") or os.getuid() != 0:
        raise NoEngineError(f"{named} cannot be pulled, and without root and debootstrap no other can be made")
    with tempfile.TemporaryDirectory() as root:
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", packages, "bookworm", root], check=True, capture_output=True
        )
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            podman("import", "-", BOOTSTRAPPED, stdin=tar.stdout)
    return BOOTSTRAPPED
