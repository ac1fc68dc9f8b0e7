"""Kills a training process again and again, each time at another moment, until it ends by itself."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from components.core.config import TrainConfig
from tests.components.conftest import TinyRun

STEPS = 60
CONFIG = TrainConfig(
    max_steps=STEPS,
    batch_tokens=256,
    gradient_accumulation_steps=2,
    lora_dropout=0.1,  # random numbers: those of a resumed run must be the ones it would have drawn
    learning_rate=0.01,
    checkpoint_steps=2,
)
LONGEST = 180.0
"""Seconds a life may take."""


def start(job: dict[str, str], folder: Path, store: str) -> subprocess.Popen[str]:
    """Starts `qlora step train_qlora` on a prepared set, its adapter to be written into the folder."""
    command = [sys.executable, "-m", "pipelines.cli", "step", "train_qlora"]
    for name, value in job.items():
        command += [f"--{name}", value]
    for name in ("max_steps", "batch_tokens", "gradient_accumulation_steps", "lora_dropout", "learning_rate",
                 "checkpoint_steps"):  # fmt: skip
        command += [f"--{name.replace('_', '-')}", str(getattr(CONFIG, name))]
    command += [
        "--training-key",
        "killed",
        "--adapter",
        str(folder / "adapter"),
        "--report",
        str(folder / "report.html"),
    ]
    environment = os.environ | {"QLORA_STORE": store, "MLFLOW_TRACKING_URI": "", "KFP_RETRY_INDEX": "0"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """What an undisturbed process printed; it must end well."""
    output, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, output
    return output


def kill(process: subprocess.Popen[str], moment: Callable[[], bool]) -> str:
    """Kills a process with -9 once training has begun and `moment` says so; returns what it had printed."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "] training " in line:
            break
    else:
        raise AssertionError(f"it ended before training began:\n{''.join(lines)}")
    until = time.monotonic() + LONGEST
    while process.poll() is None and not moment() and time.monotonic() < until:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    lines.append(process.communicate()[0])
    return "".join(lines)


def after(seconds: float) -> Callable[[], bool]:
    """The moment so many seconds from the first time it is asked for."""
    begun: list[float] = []

    def passed() -> bool:
        begun.append(time.monotonic())
        return begun[-1] - begun[0] >= seconds

    return passed


def in_a_checkpoint(folder: Path) -> Callable[[], bool]:
    """The moment at which a new checkpoint is being written below a folder: it is there, its manifest is not yet."""
    torn = {path.parent for path in folder.glob("step-*/*/*")} - {path.parent for path in _manifests(folder)}

    def writing() -> bool:
        begun = {path.parent for path in folder.glob("step-*/*/*")}
        return bool(begun - torn - {path.parent for path in _manifests(folder)})

    return writing


def _manifests(folder: Path) -> list[Path]:
    return list(folder.glob("step-*/*/manifest.json"))


def moments(rng: random.Random, folder: Path) -> Callable[[], bool]:
    """A random one: half of them in the middle of a checkpoint."""
    return in_a_checkpoint(folder) if rng.random() < 0.5 else after(rng.uniform(0.0, 2.0))


def job(run: TinyRun, base: Path) -> dict[str, str]:
    """The inputs of the step, as the command line takes them."""
    return {
        "train-set": str(run.folder / "train.parquet"),
        "dataset-digest": run.data.dataset_digest,
        "base-uri": str(base),
        "base-revision": run.plan.base_revision,
    }


def adapter_after_no_kill(job: dict[str, str], folder: Path) -> bytes:
    """The adapter's bytes after an undisturbed run."""
    folder.mkdir()
    finish(start(job, folder, str(folder / "store")))
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def adapter_after_kills(job: dict[str, str], folder: Path, kills: int, rng: random.Random) -> tuple[bytes, int]:
    """The adapter's bytes after so many kills and one last life, and how many kills tore a checkpoint."""
    folder.mkdir()
    checkpoints = folder / "store" / "checkpoints" / "killed"
    for _ in range(kills):
        kill(start(job, folder, str(folder / "store")), moments(rng, checkpoints))
        assert not (folder / "adapter").exists(), "it ended before it was killed often enough: give it more steps"
    torn = {path.parent for path in checkpoints.glob("step-*/*/*")} - {path.parent for path in _manifests(checkpoints)}
    output = finish(start(job, folder, str(folder / "store")))
    assert "going on after step" in output, output
    assert output.count("it was not finished") == len(torn), output
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes(), len(torn)
