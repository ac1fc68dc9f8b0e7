#!/usr/bin/env bash
# Builds the images that are named, or both: images/build.sh [cpu] [cuda]; or pushes both: images/build.sh release
# With Docker, the bake file; else podman, which builds the same Dockerfile without SBOM and provenance.
# PYTHON_IMAGE names another base image; BUILD_FLAGS are further flags of podman.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
read -r CPU_IMAGE CUDA_IMAGE VERSION < <(
  "$python" -c 'from qlora_pipelines.components import images; print(images.CPU, images.CUDA, images.CPU.rpartition(":")[2])'
)
REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)
export CPU_IMAGE CUDA_IMAGE VERSION REVISION

if docker buildx version >/dev/null 2>&1; then
  base=${PYTHON_IMAGE:+--set=*.args.PYTHON_IMAGE=$PYTHON_IMAGE}
  exec docker buildx bake -f images/docker-bake.hcl ${base:+"$base"} "$@"
fi
command -v podman >/dev/null || { echo "error: no docker buildx and no podman: install one of them" >&2; exit 1; }
[[ "$*" != release ]] || { echo "error: release needs docker buildx: podman writes no provenance" >&2; exit 1; }
for target in ${*:-cpu cuda}; do
  image=$([[ $target == cpu ]] && echo "$CPU_IMAGE" || echo "$CUDA_IMAGE")
  # shellcheck disable=SC2086
  podman build ${BUILD_FLAGS:-} -f images/Dockerfile --target "$target" -t "$image" \
    ${PYTHON_IMAGE:+--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"} \
    --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION" .
done
