"""Training whose process dies goes on from its last checkpoint, and one that gets no further ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.train_qlora import launch, memory, supervisor, training
from tests.components.conftest import TinyRun
from tests.components.train_qlora import deaths
from tests.components.train_qlora.test_task import train

FILES = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WAIT", 0.0)


def test_a_killed_process_is_started_again_and_the_adapter_is_the_same_bit_for_bit(
    tiny_run: TinyRun,
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = TrainConfig(max_steps=4, batch_tokens=256, learning_rate=0.01, lora_dropout=0.2, save_steps=2)
    train(tiny_run, tiny_model, tmp_path / "undisturbed", config, "undisturbed")
    monkeypatch.setattr(training, "train", deaths.killed_once)
    train(tiny_run, tiny_model, tmp_path / "killed", config.model_copy(update={"max_restarts": 1}), "killed-once")
    said = capfd.readouterr().out
    assert (
        "warning: the training process was killed by signal 9 (SIGKILL), most likely for taking more memory than its"
        " limit; going on after step 2 in 0 s; restarts left without a newer checkpoint: 0\n"
    ) in said
    assert said.count("for 4 steps, going on after step 2") == 1
    for file in FILES:
        assert (tmp_path / "undisturbed" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


def run(
    work: Callable[..., Any], *args: Any, reached: Callable[[], int] = lambda: 0, max_restarts: int = 2, **more: Any
) -> Any:
    """The supervisor with work that needs no model."""
    more = {"begin": lambda folder: args, "killed": "raise memory"} | more
    return supervisor.run(work, 1, reached=reached, max_restarts=max_restarts, **more)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("exit", "the training process ended with exit status 1: what it printed last says why"),
        ("SIGTERM", "the training process was killed by signal 15 (SIGTERM)"),
        (
            "SIGKILL",
            "the training process was killed by signal 9 (SIGKILL), most likely for taking more memory than its limit;"
            " raise memory",
        ),
        ("ValueError", "the training process failed: ValueError: odd"),
        ("TransientError", "the store is away"),
    ],
)
def test_what_dies_again_and_again_ends_after_max_restarts(
    how: str, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TransientError) as ended:
        run(deaths.leave, tmp_path / "calls", how)
    assert str(ended.value) == f"{line} (restarted 2 times without a newer checkpoint)"
    assert (tmp_path / "calls").read_text() == "..."
    said = capfd.readouterr()
    left = [line[-2:] for line in said.out.splitlines() if "restarts left without a newer checkpoint" in line]
    assert left == [" 1", " 0"]
    assert said.err.count("Traceback") == (3 if how == "ValueError" else 0)


@pytest.mark.parametrize(
    ("how", "line"), [("InputError", "^bad data$"), ("PermissionError", "^/store: Permission denied; give another")]
)
def test_what_would_fail_again_is_not_started_again(
    how: str, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=line) as ended:
        run(deaths.leave, tmp_path / "calls", how)
    assert not isinstance(ended.value, TransientError)
    assert (tmp_path / "calls").read_text() == "."
    assert capfd.readouterr() == ("", "")


def test_a_newer_checkpoint_makes_the_count_start_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = iter([0, 0, 10, 10, 20, 20, 20])
    with pytest.raises(TransientError, match=r"\(restarted 2 times"):
        run(deaths.leave, tmp_path / "calls", "exit", reached=lambda: next(steps))
    assert [line[-1] for line in capsys.readouterr().out.splitlines()] == list("11010")
    assert next(steps, None) is None


def test_a_store_that_is_away_at_a_start_is_one_death_more(tmp_path: Path) -> None:
    begun: list[Path] = []

    def begin(folder: Path) -> tuple[Path, str]:
        begun.append(folder)
        if len(begun) == 2:
            raise TransientError("the store is away")
        return tmp_path / "calls", "exit"

    with pytest.raises(TransientError, match="exit status 1"):
        run(deaths.leave, begin=begin)
    assert len(begun) == 3
    assert (tmp_path / "calls").read_text() == ".."
    assert not any(folder.exists() for folder in begun)


NO_PYTORCH = """
import sys
from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.train_qlora import task, training
from tests.components.train_qlora import deaths

names = "train_set dataset_digest base_uri base_revision training_key adapter report".split()
training.train = deaths.train_nothing
task.run(TrainConfig(), **dict(zip(names, sys.argv[1:], strict=True)))
assert not {"torch", "transformers"} & sys.modules.keys()
"""


def test_the_steps_own_process_never_imports_pytorch(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    """So it holds no memory of a GPU."""
    data = [str(tiny_run.folder / "train.parquet"), tiny_run.data.dataset_digest]
    base = [str(tiny_model), tiny_run.plan.base_revision]
    written = ["no-pytorch", str(tmp_path / "adapter"), str(tmp_path / "report.html")]
    subprocess.run([sys.executable, "-c", NO_PYTORCH, *data, *base, *written], check=True)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == b"nothing"


def test_without_restarts_one_process_is_this_one() -> None:
    assert run(os.getpid, max_restarts=0) == os.getpid()
    assert run(os.getpid, max_restarts=1) != os.getpid()


def test_what_a_process_left_in_its_temporary_folder_is_removed(tmp_path: Path) -> None:
    run(deaths.leave_a_file, tmp_path / "where")
    assert not Path((tmp_path / "where").read_text()).exists()


def test_a_killed_process_is_explained_by_the_plan() -> None:
    assert memory.killed(TrainConfig(use_cpu=True), 9_000, 2_000) == "the plan said 2,000 MiB: raise memory"
    on_gpu = memory.killed(TrainConfig(), 9_000, 2_000)
    assert on_gpu == "the plan said 9,000 MiB on a GPU, 2,000 MiB without one: raise memory"
    assert memory.killed(TrainConfig(), 0, 0) == "there was no plan: raise memory"


SUPERVISOR = """
import signal
import sys
from pathlib import Path
from qlora_pipelines.components.train_qlora import supervisor
from tests.components.train_qlora import deaths

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
supervisor.GRACE = 0.1
supervisor.run(
    deaths.sleep, int(sys.argv[2]), begin=lambda _: (Path(sys.argv[1]),), reached=lambda: 0, max_restarts=3, killed=""
)
"""


@pytest.mark.parametrize(
    ("how", "processes"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGKILL, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 2)],
)
def test_when_the_step_is_ended_no_training_process_lives_on(how: int, processes: int, tmp_path: Path) -> None:
    step = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), str(processes)], stdout=subprocess.PIPE, text=True
    )
    until(lambda: len(list(tmp_path.iterdir())) == processes)
    step.send_signal(how)
    said, _ = step.communicate(timeout=600)  # its end, and that of all who can write to its output
    assert step.returncode == (143 if how == signal.SIGTERM else -how)
    assert not said
    until(lambda: not any(alive(int(path.name)) for path in tmp_path.iterdir()))


def alive(process: int) -> bool:
    """Whether a process has not ended; one that nobody waits for any more may stay as a zombie in a container."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def until(true: Callable[[], bool]) -> None:
    """Waits until something is so."""
    end = time.monotonic() + 600
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_where_the_kernel_does_not_tell_a_process_looks_for_its_parent() -> None:
    code = f"from {launch.__name__} import _watch; _watch(0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1
