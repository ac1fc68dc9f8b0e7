"""The command as people type it: what it prints and how it exits, bad input above all."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from qlora_pipelines.pipelines.cli.main import main
from qlora_pipelines.pipelines.docgen.reference import GOLDEN, STEPS
from tests.conftest import conversation, write_jsonl


def qlora(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_help_shows_an_example_everywhere() -> None:
    for command in main.commands:
        assert "\n  Example:\n    " in qlora(command, "--help").output, command
    assert "3 rejected by the gate" in qlora("--help").output


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_a_command_with_its_options(step: str) -> None:
    result = qlora("step", step, "--help")
    assert result.exit_code == 0 and "--json" in result.output


def test_compile_writes_the_golden_pipeline(tmp_path: Path) -> None:
    result = qlora("compile", tmp_path / "pipeline.yaml")
    assert result.exit_code == 0
    assert (tmp_path / "pipeline.yaml").read_text() == GOLDEN.read_text()
    assert qlora("compile", tmp_path / "pipeline.txt").exit_code == 1


def test_a_usage_error_exits_2() -> None:
    assert qlora("run").exit_code == 2
    assert qlora("nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("base_model: [", "not YAML at line"),
        ("- a", "expected options as NAME: VALUE"),
        ("base_model: m\ndataset_uri: d\n", "model_name is required"),
        ("base_model: m\ndataset_uri: d\nmodel_name: n\nlr: 1\n", "unknown option lr"),
        ("base_model: m\ndataset_uri: d\nmodel_name: n\nlerning_rate: 1\n", "did you mean learning_rate?"),
        ("base_model: m\ndataset_uri: d\nmodel_name: a/b\n", "register_model: model_name"),
        ("base_model: m\ndataset_uri: d\nmodel_name: n\nmemroy: 1Gi\n", "did you mean memory?"),
        ("base_model: m\ndataset_uri: d\nmodel_name: n\nmemory: 64GiB\n", "memory: Kubernetes writes this 64Gi (got"),
        ("base_model: m\ndataset_uri: d\nmodel_name: n\ntolerations: '[{'\n", "tolerations: not JSON"),
        ("base_model: m\ndataset_uri: d\nmodel_name: a@b\n", "register_model: model_name"),
        (
            "base_model: m\ndataset_uri: d\nmodel_name: n\nnum_train_epochs: .inf\n",
            "num_train_epochs: Input should be a finite number",
        ),
        (
            "base_model: m\ndataset_uri: d\nmodel_name: n\noptions: {train_qlora: {batch_tokes: 1}}\n",
            "train_qlora: unknown option batch_tokes; did you mean batch_tokens?",
        ),
    ],
)
def test_a_bad_config_is_one_line_and_exit_1(config: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(config)
    result = qlora("run", "--config", tmp_path / "run.yaml", "--runs", tmp_path / "runs")
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1 and result.output.startswith("error: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_qlora", "--warmup-share", "0.1"], "--warmup-share is now --warmup-steps"),
        (["train_qlora", "--optimizer", "sgd"], "--optimizer is now --optim"),
        (["plan_run", "--epochs", "2"], "--epochs is now --num-train-epochs"),
    ],
)
def test_a_flag_of_an_old_name_is_refused_with_the_new_one(arguments: list[str], message: str) -> None:
    result = qlora("step", *arguments)
    assert result.exit_code == 2 and result.output.endswith(f"Error: {message}\n")
    assert f"{arguments[1]} " not in qlora("step", arguments[0], "--help").output


def test_an_old_name_in_a_config_is_refused_with_the_new_one(tmp_path: Path) -> None:
    config = run_config(tmp_path, base_model="m", dataset_uri="d", epochs=2)
    result = qlora("run", "--config", config)
    assert (result.exit_code, result.output) == (1, f"error: config {config}: epochs is now num_train_epochs\n")
    options = {"train_qlora": {"keep_checkpoints": 1}}
    for given in (options, json.dumps(options)):
        result = qlora("run", "--config", run_config(tmp_path, base_model="m", dataset_uri="d", options=given))
        message = "options.train_qlora.keep_checkpoints is now save_total_limit"
        assert (result.exit_code, result.output) == (1, f"error: config {config}: {message}\n")


def test_a_config_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    result = qlora("run", "--config", tmp_path / "run.yaml")
    assert (result.exit_code, result.output) == (1, f"error: config {tmp_path}/run.yaml: not text\n")


def test_a_folder_that_cannot_hold_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = run_config(tmp_path, base_model="m", dataset_uri="d")
    result = qlora("run", "--config", config, "--runs", tmp_path / "file")
    assert (result.exit_code, result.output) == (
        1,
        f"error: {tmp_path}/file: File exists; give another place, or make room and rights there\n",
    )


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    result = qlora("run", "--config", tmp_path / "none.yaml")
    assert (result.exit_code, result.output) == (1, f"error: config {tmp_path}/none.yaml: No such file or directory\n")


def run_config(folder: Path, **values: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"model_name": "tiny", **values}))
    return path


def bad_input(folder: Path, config: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "qlora", "run", "--config", config, "--runs", folder / "runs"]
    return subprocess.run(
        command, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, cwd=folder
    )


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("base", "no folder of that name here"),
        ("missing data", "nothing there"),
        ("empty data", "the file is empty"),
        ("not json", "rows.jsonl:2 not JSON"),
        ("target", "w_proj matches no linear layer"),
        ("mlflow", "MLflow at http://127.0.0.1:9 does not answer: Connection refused"),
    ],
)
def test_bad_input_is_one_line_exit_1_and_nothing_registered(
    case: str, message: str, tmp_path: Path, tiny_model: Path
) -> None:
    import os

    data = write_jsonl(tmp_path / "rows.jsonl", [conversation(f"question {n}", "cat") for n in range(20)])
    values: dict[str, object] = {"base_model": str(tiny_model), "dataset_uri": str(data), "max_length": 64}
    environment = {name: value for name, value in os.environ.items() if name != "QLORA_STORE"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    match case:
        case "base":
            values["base_model"] = "no-such/model"
        case "missing data":
            values["dataset_uri"] = str(tmp_path / "none.jsonl")
        case "empty data":
            data.write_text("")
        case "not json":
            data.write_text(json.dumps(conversation("a", "b")) + "\n{broken\n")
        case "target":
            values["options"] = {"train_qlora": {"target_modules": "w_proj"}}
        case "mlflow":
            environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
            environment["QLORA_STORE"] = str(tmp_path / "store")
    done = bad_input(tmp_path, run_config(tmp_path, **values), environment)
    assert done.returncode == 1
    first, log = done.stderr.splitlines()
    assert first.startswith("error: ") and message in first and log.startswith("The whole log: "), done.stderr
    assert "error: " not in done.stdout and "Traceback" not in done.stdout + done.stderr
    tasks = re.findall("Executing task.*?'([^']+)'", next((tmp_path / "runs").glob("*/log.txt")).read_text())
    assert tasks and len(tasks) == len(set(tasks)), "what failed is not tried again"
    assert not (tmp_path / "runs" / "store" / "merged").exists()
