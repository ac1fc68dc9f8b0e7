"""Training that cannot go on stops at once, says why, and loses nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.train_qlora import memory
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints
from tests.components.conftest import TinyRun
from tests.components.train_qlora.test_task import train
from tests.kill import lives


def step(run: TinyRun, base: Path, folder: Path, *prefix: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`qlora step train_qlora` in a process of its own, with a store and a folder for temporary files in `folder`."""
    command = [
        *prefix,
        sys.executable,
        "-m",
        "qlora_pipelines.pipelines.cli.main",
        "step",
        "train_qlora",
        "--training-key",
        "ends",
    ]
    command += ["--adapter", str(folder / "adapter"), "--report", str(folder / "report.html")]
    for name, value in {**lives.job(run, base, 3), **options}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = os.environ | {"QLORA_STORE": str(folder / "store"), "MLFLOW_TRACKING_URI": "", "TMPDIR": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("limit", ["setup", "step"])
def test_what_exceeds_its_time_limit_prints_its_stacks_and_ends(
    limit: str, tiny_run: TinyRun, tiny_model: Path, tmp_path: Path
) -> None:
    ended = step(tiny_run, tiny_model, tmp_path, max_restarts=1, **{f"{limit}_limit_minutes": 0.0001})
    assert ended.returncode == 1
    assert ended.stderr.startswith("Timeout (0:00:00.006")
    assert "/components/train_qlora/" in ended.stderr
    if limit == "step":  # the set-up begins in the step's own process, which is not started again
        assert "train_qlora/training.py" in ended.stderr
        assert ended.stderr.count("Timeout (0:00:00.006") == 2
        assert "exit status 1: what it printed last says why; going on after step 0 in 2 s" in ended.stdout
        last = ended.stdout.splitlines()[-1]
        assert last.startswith("[train_qlora] error: the training process ended with exit status 1")
        assert last.endswith("(restarted once without a newer checkpoint)")
        assert ended.stdout.count("] error: ") == 1
    assert not (tmp_path / "adapter").exists()
    assert not list((tmp_path / "store").rglob("failed.txt"))  # a retry tries again


def own_mounts() -> bool:
    """Whether a process here may mount a file system of its own."""
    return (
        not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
        if shutil.which("unshare")
        else False
    )


@pytest.mark.skipif(not own_mounts(), reason="no right to mount a small disk of its own (unshare -rm)")
def test_a_full_disk_is_said_and_may_pass(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = f'mount -t tmpfs -o size=300k none {small} && "$@"'
    ended = step(tiny_run, tiny_model, small, "unshare", "-rm", "sh", "-c", mount, "sh", save_steps=1, max_restarts=0)
    assert ended.returncode == 1, ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert last.startswith(f"[train_qlora] error: the disk is full at {small}")
    assert "give the pod more ephemeral storage" in last


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534", True),
        ("Error while serializing: I/O error: No space left on device (os error 28)", True),
        ("shapes differ", False),
    ],
)
def test_libraries_words_for_a_full_disk_are_understood(said: str, full: bool) -> None:
    expected = TransientError if full else RuntimeError
    with pytest.raises(expected, match="the disk is full at" if full else said), memory.explain(TrainConfig(), 0, 0):
        raise RuntimeError(said)


def test_memory_that_ran_out_is_explained() -> None:
    import torch

    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not memory.is_out_of_memory(RuntimeError("shapes differ"))
    config = TrainConfig(gradient_checkpointing=True)
    words = r"the plan said 15,000 MiB: lower batch_tokens \(now 2048\) or max_length"
    with pytest.raises(InputError, match=words), memory.explain(config, 0, 15_000):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
    said = str(memory.out_of_memory(TrainConfig(), 0, 0))
    assert "there was no plan: set gradient_checkpointing true, or lower batch_tokens" in said


def broken_at(base: Path, folder: Path, token: int) -> Path:
    """A copy of the model in which one token's embedding is no number; the head is its own and whole."""
    import safetensors.torch

    shutil.copytree(base, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][token] = float("nan")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def test_a_loss_that_becomes_no_number_keeps_the_checkpoint_before_it_and_is_not_tried_again(
    tiny_run: TinyRun, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One conversation a row, and few of them hold the word: so some steps are good, and the first bad one ends it."""
    from transformers import AutoTokenizer

    token = AutoTokenizer.from_pretrained(tiny_model)(" five", add_special_tokens=False).input_ids[-1]
    base = broken_at(tiny_model, tmp_path / "base", token)
    config = TrainConfig(packing=False, save_steps=1, save_total_limit=1)
    with pytest.raises(InputError, match=r"is no number at step \d+: lower learning_rate") as caught:
        train(tiny_run, base, tmp_path, config, "becomes-nan", base_revision="broken")
    at = int(str(caught.value).split("at step ")[1].split(":")[0])
    kept = Checkpoints(storage.join(storage.root(), "checkpoints", "becomes-nan"), 1).newest(tmp_path / "copy")
    assert at > 1
    assert kept is not None
    assert kept[0] == at - 1
    monkeypatch.setenv("KFP_RETRY_INDEX", "1")
    with pytest.raises(InputError, match="not tried again"):
        train(tiny_run, tmp_path / "nowhere", tmp_path, config, "becomes-nan", base_revision="broken")
    assert attempts.find(storage.join(storage.root(), "adapters", "becomes-nan")) is None
