"""The tiny run's adapter judged: what the tests of this step share."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.evaluate_model import task
from tests.components.conftest import TinyRun, digest, sealed

Judge = Callable[..., task.Result]


@pytest.fixture
def judge(tiny_run: TinyRun, tiny_model: Path, adapter: Path, tmp_path: Path) -> Judge:
    """Evaluates the tiny run's adapter, but for what is given."""

    def run(config: EvaluateConfig | None = None, **given: Any) -> task.Result:
        arguments = {
            "eval_set": str(tiny_run.folder / "eval.parquet"),
            "dataset_digest": tiny_run.data.dataset_digest,
            "base_uri": str(tiny_model),
            "adapter": str(adapter),
            "scores": str(tmp_path / "scores"),
            "report": str(tmp_path / "report.html"),
        }
        arguments |= given
        for work in ("adapter", "merged_uri"):
            if arguments.get(work):
                arguments.setdefault(f"{work.removesuffix('_uri')}_digest", digest(arguments[work]))
        return task.run(config or EvaluateConfig(generation_rows=0), **arguments)

    return run


@pytest.fixture(scope="session")
def judged(tiny_run: TinyRun, adapter: Path, tiny_model: Path) -> task.Result:
    return task.run(
        tiny_run.config.for_step("evaluate_model"),
        eval_set=str(tiny_run.folder / "eval.parquet"),
        dataset_digest=tiny_run.data.dataset_digest,
        base_uri=str(tiny_model),
        adapter=str(adapter),
        adapter_digest=digest(adapter),
        scores=str(tiny_run.folder / "scores"),
        report=str(tiny_run.folder / "tuned.html"),
    )


def altered(adapter: Path, folder: Path, change: Callable[[str, Any], Any]) -> Path:
    """A copy of an adapter whose weights are changed."""
    import safetensors.torch

    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    weights = {name: change(name, value) for name, value in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    return sealed(folder)
