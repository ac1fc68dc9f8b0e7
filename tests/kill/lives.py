"""Kills training again and again, each time at another moment, until it ends by itself.

Either the step's own process is killed, and the step started again, as in a new pod; or the process that trains, and
the step starts it again itself.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.store import attempts, storage
from tests.components.conftest import TinyRun

CONFIG = TrainConfig(
    batch_tokens=256,
    gradient_accumulation_steps=2,
    lora_dropout=0.1,  # random numbers: those of a resumed run must be the ones it would have drawn
    learning_rate=0.01,
    save_steps=2,
    max_restarts=100,  # many kills in a row may come before the next checkpoint
)
KEY = "killed"
LONGEST = 900.0
"""Seconds a life may take."""


def start(job: dict[str, str], folder: Path, store: str) -> subprocess.Popen[str]:
    """Starts `qlora step train_qlora` on a prepared set, its adapter to be written into the folder."""
    command = [sys.executable, "-m", "qlora_pipelines.pipelines.cli.main", "step", "train_qlora"]
    for name, value in job.items():
        command += [f"--{name}", value]
    for name in CONFIG.model_fields_set:
        command += [f"--{name.replace('_', '-')}", str(getattr(CONFIG, name))]
    command += ["--training-key", KEY, "--adapter", str(folder / "adapter"), "--report", str(folder / "report.html")]
    environment = os.environ | {"QLORA_STORE": store, "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """What an undisturbed process printed; it must end well."""
    output, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, output
    return output


def kill(process: subprocess.Popen[str], moment: Callable[[], bool], trainer: bool) -> None:
    """Kills with -9, once training has begun and `moment` says so: the step, or only the process that trains."""
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
    if trainer:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children, "training ended before it was killed often enough: give it more steps"
        os.kill(int(children[0]), signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=LONGEST)  # ends when all have ended that write to its output


def after(seconds: float) -> Callable[[], bool]:
    """The moment so many seconds from the first time it is asked for."""
    begun: list[float] = []

    def passed() -> bool:
        begun.append(time.monotonic())
        return begun[-1] - begun[0] >= seconds

    return passed


def in_a_checkpoint(uri: str) -> Callable[[], bool]:
    """The moment at which a new checkpoint is being written, or uploaded, below a URI.

    Something of it is there, its manifest is not yet, and there is a whole one before it.
    """
    torn, _ = attempts_below(uri)

    def writing() -> bool:
        begun, whole = attempts_below(uri)
        return bool(whole and begun - torn)

    return writing


def attempts_below(uri: str) -> tuple[set[str], set[str]]:
    """The attempts at a checkpoint below a URI: those without a manifest, and the whole ones."""
    names = list(storage.sizes(uri))
    begun = {name.rsplit("/", 1)[0] for name in names if name.startswith("step-")}
    whole = {name.rsplit("/", 1)[0] for name in names if name.endswith(f"/{attempts.MANIFEST}")}
    return begun - whole, whole


def moments(rng: random.Random, uri: str) -> Callable[[], bool]:
    """A random one: half of them in the middle of a checkpoint."""
    return in_a_checkpoint(uri) if rng.random() < 0.5 else after(rng.uniform(0.0, 2.0))


def job(run: TinyRun, base: Path, steps: int) -> dict[str, str]:
    """The inputs of the step, as the command line takes them, for so many optimiser steps."""
    return {
        "max-steps": str(steps),
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


def adapter_after_kills(
    job: dict[str, str], folder: Path, kills: int, rng: random.Random, store: str = ""
) -> tuple[bytes, int]:
    """The adapter's bytes after so many kills and one last life, and how many kills tore a checkpoint.

    Args:
        job: the step's inputs.
        folder: of the test.
        kills: how many.
        rng: draws the moments.
        store: where adapters and checkpoints go; empty: below the folder.
    """
    folder.mkdir()
    store = store or str(folder / "store")
    uri = storage.join(store, "checkpoints", KEY)
    process = start(job, folder, store)
    for number in range(kills):
        trainer = number % 2 == 1
        kill(process, moments(rng, uri), trainer)
        assert not (folder / "adapter").exists(), "it ended before it was killed often enough: give it more steps"
        if not trainer:
            process = start(job, folder, store)
    torn, _ = attempts_below(uri)
    output = finish(process)
    assert "going on after step" in output, output
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes(), len(torn)
