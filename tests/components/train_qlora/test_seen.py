"""Training is seen while it runs, and what it leaves says what it was made from."""

import contextlib
import json
import time
from pathlib import Path

import mlflow
import pytest

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.data import tokenized
from qlora_pipelines.components.core.data.chat_template import IGNORED
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.train_qlora import mlflow_run
from qlora_pipelines.components.train_qlora.mlflow_run import MlflowRun
from tests.components.conftest import TinyRun
from tests.components.train_qlora.test_task import train

SHORT = TrainConfig(max_steps=3, batch_tokens=256, learning_rate=0.01)


def test_an_injected_run_is_joined_and_left_running(
    tiny_run: TinyRun, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kubeflow Pipelines' MLflow plugin injects it: the figures of each step, and nothing ended that is not ours."""
    client = mlflow.MlflowClient(f"sqlite:///{tiny_run.folder / 'mlflow.db'}")
    injected = client.create_run(client.create_experiment("kubeflow")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    train(tiny_run, tiny_model, tmp_path, SHORT, "joined")
    run = client.get_run(injected)
    assert run.info.status == "RUNNING"
    assert set(run.data.metrics) == {"loss", "learning_rate", "grad_norm", "supervised_tokens_per_s", "memory_mib"}
    losses = [metric.value for metric in client.get_metric_history(injected, "loss")]
    assert losses == pytest.approx(attempts.read(str(tmp_path / "adapter")).info["losses"])


def test_without_one_the_training_has_a_run_of_its_own_which_a_resumed_one_goes_on_in(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    client = mlflow.MlflowClient(f"sqlite:///{tiny_run.folder / 'mlflow.db'}")
    for error, status in ((KeyboardInterrupt(), "KILLED"), (OSError(), "FAILED"), (None, "FINISHED")):
        with contextlib.suppress(KeyboardInterrupt, OSError), MlflowRun("key", {"lora_r": 16}) as run:
            run.log(1, {"loss": 2.0})
            if error:
                raise error
        [found] = client.search_runs(
            [client.get_experiment_by_name("qlora-training").experiment_id], "tags.`qlora.training_key` = 'key'"
        )
        assert (found.info.status, found.data.params) == (status, {"lora_r": "16"})


@pytest.mark.parametrize(("error", "status"), [(TransientError("killed"), "FAILED"), (SystemExit(143), "KILLED")])
def test_the_run_of_killed_processes_is_ended_by_the_step(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    client = mlflow.MlflowClient(f"sqlite:///{tiny_run.folder / 'mlflow.db'}")
    run = MlflowRun(f"left-{status}", {})
    mlflow_run.end(f"left-{status}", error)
    assert client.get_run(run._run).info.status == status
    client.set_terminated(run._run, "FINISHED")
    mlflow_run.end(f"left-{status}", error)
    assert client.get_run(run._run).info.status == "FINISHED"
    mlflow_run.end("never-begun", error)


def test_an_mlflow_that_does_not_answer_is_said_once_and_training_goes_on(
    tiny_run: TinyRun,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    train(tiny_run, tiny_model, tmp_path, SHORT, "no-mlflow")
    assert capsys.readouterr().out.count("the training goes on without it") == 1


def test_each_logging_step_is_a_line_and_the_report_has_the_curve(
    tiny_run: TinyRun, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_run, tiny_model, tmp_path, SHORT, "lines", planned_host_mib=12_345)
    said = capsys.readouterr().out
    assert "training 32,768 parameters for 3 steps" in said
    assert "no GPU: adamw_32bit stays in the host's memory, nothing is paged" in said
    [last] = [line for line in said.splitlines() if "training: 3/3" in line]
    for part in ("loss ", " supervised tokens/s", " MiB in "):
        assert part in last
    assert "the plan said 12,345" in said
    page = (tmp_path / "training.html").read_text()
    losses = attempts.read(str(tmp_path / "adapter")).info["losses"]
    assert "<svg" in page
    assert f"loss from {losses[0]:.4f} to {losses[-1]:.4f}" in page
    assert "12,345 MiB" in page


def test_minutes_bring_a_checkpoint_where_steps_do_not(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"save_steps": 100, "save_minutes": 1e-6, "save_total_limit": 5})
    train(tiny_run, tiny_model, tmp_path, config, "by-the-clock")
    folder = Path(storage.join(storage.root(), "checkpoints", "by-the-clock"))
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000001", "step-00000002"]


def test_the_adapter_says_what_it_was_made_from(tiny_run: TinyRun, tiny_model: Path, adapter: Path) -> None:
    info = attempts.read(str(adapter)).info
    assert info["base_revision"] == tiny_run.plan.base_revision
    assert info["dataset_digest"] == tiny_run.data.dataset_digest
    assert info["config"] == tiny_run.config.for_step("train_qlora").model_dump() | {"packing": True}
    assert {"torch", "peft", "bitsandbytes", "qlora-pipelines"} <= info["versions"].keys()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_an_adapter_of_another_base_or_of_other_options_is_refused(
    tiny_run: TinyRun, tiny_model: Path, tmp_path: Path
) -> None:
    """Somebody gave the key by hand, and changed what it stands for."""
    train(tiny_run, tiny_model, tmp_path, SHORT, "by-hand")
    other = tiny_run._replace(plan=tiny_run.plan._replace(base_revision="other"))
    with pytest.raises(InputError, match=r"was made with base_revision \S+, and this run has other: .*give another"):
        train(other, tiny_model, tmp_path, SHORT, "by-hand")
    with pytest.raises(InputError, match=r"was made with lora_r 16, and this run has 8"):
        train(tiny_run, tiny_model, tmp_path, SHORT.model_copy(update={"lora_r": 8}), "by-hand")


def test_a_checkpoint_of_another_base_is_refused(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"save_steps": 2})
    train(tiny_run, tiny_model, tmp_path, config, "other-checkpoint")
    for manifest in Path(storage.join(storage.root(), "adapters", "other-checkpoint")).glob("*/manifest.json"):
        manifest.unlink()
    other = tiny_run._replace(plan=tiny_run.plan._replace(base_revision="other"))
    with pytest.raises(InputError, match=r"step-00000002/.* was made with base_revision \S+, and this run has other"):
        train(other, tiny_model, tmp_path, config, "other-checkpoint")


def test_an_adapter_that_lost_a_file_is_named_and_trained_again(
    tiny_run: TinyRun, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_run, tiny_model, tmp_path / "first", SHORT, "lost")
    [weights] = Path(storage.join(storage.root(), "adapters", "lost")).glob("*/adapter_model.safetensors")
    weights.unlink()
    time.sleep(1)  # attempts are named by the second
    train(tiny_run, tiny_model, tmp_path / "second", SHORT, "lost")
    assert "has lost adapter_model.safetensors: it is no longer taken for finished" in capsys.readouterr().out
    names = [folder / "adapter" / "adapter_model.safetensors" for folder in (tmp_path / "first", tmp_path / "second")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_data_without_a_supervised_token_is_refused(tiny_run: TinyRun, tiny_model: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tiny_run.folder / "train.parquet", schema=tokenized.schema())
    labels = [[IGNORED] * len(row) for row in table.column("labels").to_pylist()]
    at = table.schema.get_field_index("labels")
    silent = table.set_column(at, tokenized.schema().field(at), pa.array(labels, tokenized.schema().field(at).type))
    path = str(tmp_path / "silent.parquet")
    with tokenized.Writer({"train": path}) as writer:
        for batch in silent.to_batches():
            writer.write("train", batch)
        digest = writer.close()
    with pytest.raises(InputError, match="has no supervised token: nothing would be learnt"):
        train(tiny_run, tiny_model, tmp_path, SHORT, "silent", digest, train_set=path)
