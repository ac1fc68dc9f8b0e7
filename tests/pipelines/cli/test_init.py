"""`qlora init`: what it writes is a config, also with every comment taken away."""

import re
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import OPTION_STEPS, STEPS
from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.cli.main import main
from qlora_pipelines.pipelines.placement import Placement


def init(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["init", *(str(argument) for argument in arguments)])


def test_it_writes_a_config_that_loads(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    result = init(tmp_path / "mine", "--base-model", "org/base", "--data", data)
    assert result.exit_code == 0 and f"qlora run --config {tmp_path}/mine/run.yaml" in result.output
    config = run_file.load(tmp_path / "mine" / "run.yaml").config
    assert config == RunConfig(base_model="org/base", dataset_uri=str(data), model_name="mine")


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
