import os
import signal
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.train_qlora import launch, supervisor, training
from tests.components.conftest import TinyRun
from tests.components.train_qlora.deaths import killed_once
from tests.components.train_qlora.test_task import train
from tests.components.train_qlora.test_training import trained

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def alone(tiny_run: TinyRun, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that accumulates over two rows a step."""
    folder = tmp_path_factory.mktemp("alone")
    trained(tiny_run, tiny_model, folder, gradient_accumulation_steps=2)
    return folder


@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_learn_what_one_with_twice_the_accumulation_learns(
    fsdp: bool, alone: Path, tiny_run: TinyRun, tiny_model: Path, tmp_path: Path
) -> None:
    """Gloo on the CPU; the same rows a step, so the same losses and weights but for the order of summation."""
    import torch
    from safetensors.torch import load_file

    two = trained(tiny_run, tiny_model, tmp_path, processes=2, fsdp=fsdp)
    one = attempts.read(str(alone / "adapter")).info
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-3)
    assert two["quantised"] == one["quantised"]
    expected, found = load_file(alone / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert found.keys() == expected.keys()
    distance = sum((found[name] - expected[name]).square().sum() for name in found)
    assert distance < 1e-3 * sum(value.square().sum() for value in expected.values())
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_of_which_one_is_killed_go_on_from_a_checkpoint_bit_for_bit(
    fsdp: bool,
    tiny_run: TinyRun,
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process with its own random numbers, which dropout draws."""
    options = {"max_steps": 3, "batch_tokens": 256, "learning_rate": 0.01, "lora_dropout": 0.2, "save_steps": 2}
    config = TrainConfig(**options, processes=2, fsdp=fsdp)
    train(tiny_run, tiny_model, tmp_path / "first", config, f"undisturbed-{fsdp}")
    monkeypatch.setattr(training, "train", killed_once)
    monkeypatch.setattr(supervisor, "WAIT", 0.0)
    restarting = config.model_copy(update={"max_restarts": 1})
    train(tiny_run, tiny_model, tmp_path / "second", restarting, f"killed-{fsdp}")
    said = capfd.readouterr().out
    assert "training process 1 was killed by signal 9 (SIGKILL), most likely for taking more memory" in said
    assert said.count(", going on after step 2") == 1
    assert said.count("nothing is paged") == 3  # once a start
    assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()


def test_a_failure_in_another_process_is_said_in_its_own_words(
    tiny_run: TinyRun, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^target_modules: no_proj matches no linear layer"):
        trained(tiny_run, tiny_model, tmp_path, processes=2, target_modules="no_proj")


def die(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def test_a_process_that_was_killed_is_no_failure_that_would_repeat() -> None:
    with pytest.raises(TransientError, match="SIGKILL"):
        launch.run(die, 2, "SIGKILL")


def test_too_few_or_too_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    launch.check_gpus(2, "bfloat16")  # there is none here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(InputError, match=r"processes is 2, but this pod has 1 GPU"):
        launch.check_gpus(2, "float16")
    with pytest.raises(InputError, match="Tesla T4 has no bfloat16: set compute_dtype float16"):
        launch.check_gpus(1, "bfloat16")
    launch.check_gpus(1, "float16")
