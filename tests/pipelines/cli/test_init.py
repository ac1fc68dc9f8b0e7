"""`qlora init`: what it writes is a config, also with every comment taken away."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from qlora_pipelines.components.core.config.placement import PlacedRun, Placement
from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import OPTION_STEPS, STEPS
from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.cli.main import main


def init(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["init", *(str(argument) for argument in arguments)])


def test_it_writes_a_config_that_loads(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    result = init(tmp_path / "mine", "--base-model", "org/base", "--data", data)
    assert result.exit_code == 0 and f"qlora run --config {tmp_path}/mine/run.yaml" in result.output
    config = run_file.load(tmp_path / "mine" / "run.yaml").config
    assert config == PlacedRun(base_model="org/base", dataset_uri=str(data), model_name="mine")


def test_every_option_is_there_with_its_default(tmp_path: Path) -> None:
    init(tmp_path / "mine", "--base-model", "org/base")
    text = (tmp_path / "mine" / "run.yaml").read_text()
    bare = yaml.safe_load(
        re.sub(r"^# (?=[ \w]+: ?)", "", text.partition("Every option below")[2].partition("\n")[2], flags=re.M)
    )
    options = bare.pop("options")
    assert bare == {
        name: field.default
        for name, field in (RunConfig.model_fields | Placement.model_fields).items()
        if name not in ("options", "base_model", "dataset_uri", "model_name")
    }
    for step in OPTION_STEPS:
        missing = STEPS[step].model_fields.keys() - options[step].keys() - RunConfig.model_fields.keys()
        assert not missing
        assert STEPS[step].parse(options[step]) == STEPS[step]()


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    init(tmp_path)
    before = (tmp_path / "run.yaml").read_text()
    result = init(tmp_path, "--base-model", "org/other")
    assert result.exit_code == 1 and "is there already" in result.output
    assert (tmp_path / "run.yaml").read_text() == before


def test_a_name_that_mlflow_refuses_is_said_at_once(tmp_path: Path) -> None:
    result = init(tmp_path / "mine", "--model-name", "a/b")
    assert result.exit_code == 1 and "model_name" in result.output
    assert not (tmp_path / "mine").exists()


OLD = """# Ours.  epochs: as many as it takes
dataset_uri: d   # where it is
epochs: 2        # not 1: epochs
"model_name": n
base_model: epochs
# learning_rate: 0.0002               # peak learning rate
#     warmup_share: 0.05                # share of steps over which the learning rate rises
#     attention: this is prose
options:
  evaluate_model:
    baseline_messages:
      - role: system
        content: |
          # epochs: 3
          optimizer: mine
  train_qlora: {lora_alpha: 8, 'lr_schedule': linear, "optimizer" : paged_adamw_8bit,
    keep_checkpoints: 3}
"""
NEW = """# Ours.  epochs: as many as it takes
dataset_uri: d   # where it is
num_train_epochs: 2        # not 1: epochs
"model_name": n
base_model: epochs
# learning_rate: 0.0002               # peak learning rate
#     warmup_steps: 0.05                # share of steps over which the learning rate rises
#     attention: this is prose
options:
  evaluate_model:
    baseline_messages:
      - role: system
        content: |
          # epochs: 3
          optimizer: mine
  train_qlora: {lora_alpha: 8, 'lr_scheduler_type': linear, "optim" : paged_adamw_8bit,
    save_total_limit: 3}
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_old_file_gets_the_new_names_and_nothing_else_changes(end: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(OLD.replace("\n", end).encode())
    result = init("--upgrade", path)
    assert (result.exit_code, result.output.splitlines()) == (
        0,
        [
            f"{path} is rewritten:",
            "  line 3: epochs is now num_train_epochs",
            "  line 7: warmup_share is now warmup_steps",
            "  line 16: lr_schedule is now lr_scheduler_type",
            "  line 16: optimizer is now optim",
            "  line 17: keep_checkpoints is now save_total_limit",
        ],
    )
    assert path.read_bytes().decode() == NEW.replace("\n", end)
    train = run_file.load(path).config.for_step("train_qlora")
    assert (train.num_train_epochs, train.optim, train.save_total_limit) == (2, "paged_adamw_8bit", 3)
    again = init("--upgrade", path)
    assert (again.exit_code, again.output) == (0, f"{path} is up to date: nothing was changed\n")
    assert os.listdir(tmp_path) == ["run.yaml"] and path.read_bytes().decode() == NEW.replace("\n", end)


def test_every_old_name_is_renamed_also_where_options_are_json_or_shared(tmp_path: Path) -> None:
    from qlora_pipelines.pipelines.cli.init import RENAMED

    path = tmp_path / "run.yaml"
    needed = "base_model: m\ndataset_uri: d\nmodel_name: n\n"
    of_a_step = {old: 1 for old in RENAMED if old != "epochs"}
    as_json = json.dumps({"train_qlora": of_a_step})
    texts = [
        "options: {train_qlora: &shared {" + ", ".join(f"{name}: 1" for name in of_a_step) + "}}",
        "options:\n  train_qlora:\n" + "".join(f"    {name}: 1\n" for name in of_a_step),
        f"options: '{as_json}'",
        f"options: {json.dumps(as_json)}",
    ]
    for text in texts:
        path.write_text(needed + text)
        assert init("--upgrade", path).exit_code == 0
        options = run_file.read(path)["options"]
        options = json.loads(options) if isinstance(options, str) else options
        assert list(options["train_qlora"]) == [RENAMED[old] for old in of_a_step]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: {web: {image: nginx}}\nepochs: 2\n", "is not a run's file: unknown option services"),
        ("- epochs: 2\n", "expected options as NAME: VALUE"),
        ("", "expected options as NAME: VALUE"),
        ("epochs: [\n", "not YAML at line"),
        ("epochs: 2\nnum_train_epochs: 3\n", "has both epochs and num_train_epochs: remove one of them"),
    ],
)
def test_what_cannot_be_upgraded_says_so_and_stays(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    result = init("--upgrade", path)
    assert result.exit_code == 1 and message in result.output and result.output.count("\n") == 1
    assert path.read_text() == text


def test_a_file_to_upgrade_that_is_not_there(tmp_path: Path) -> None:
    result = init("--upgrade", tmp_path / "none.yaml")
    assert (result.exit_code, result.output) == (1, f"error: config {tmp_path}/none.yaml: No such file or directory\n")


def test_either_a_folder_or_a_file_to_upgrade(tmp_path: Path) -> None:
    assert init().exit_code == init(tmp_path, "--upgrade", tmp_path / "run.yaml").exit_code == 2


def test_what_it_writes_is_up_to_date(tmp_path: Path) -> None:
    init(tmp_path / "mine", "--base-model", "org/base")
    assert "is up to date" in init("--upgrade", tmp_path / "mine" / "run.yaml").output
