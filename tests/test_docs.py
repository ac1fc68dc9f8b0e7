"""What the docs say: every command is one, those that need no cluster are run, and figures are reckoned anew."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.plan_run import architecture, memory
from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.cli.main import main
from tests.conftest import conversation, write_jsonl

ROOT = Path(__file__).parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "AGENTS.md", "DECISIONS.md")
PAGES = sorted([*(ROOT / name for name in TOP), *(ROOT / "docs").glob("*.md"), *ROOT.glob("c*/**/README.md")])
CONFIGS = ROOT / "tests" / "components" / "plan_run" / "configs"
EXAMPLE = ROOT / "pipelines" / "examples" / "llama-2-7b-chat-guanaco.yaml"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path, language: str | None = None) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if language in (None, kind)]


def commands() -> list[tuple[str, str]]:
    """Every line of the docs that calls qlora, without comments and pipes; lines that end in \\ are joined."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.partition(" #")[0].partition(" |")[0].strip()
                if words.startswith("qlora "):
                    found.append((str(page.relative_to(ROOT)), words))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_of_the_docs_is_one(page: str, line: str) -> None:
    command: click.Command = main
    names, words = ["qlora"], shlex.split(line)[1:]
    while isinstance(command, click.Group):
        with click.Context(command, info_name=names[-1]) as context:
            name, found, words = command.resolve_command(context, words)
        assert name and found, line
        names, command = [*names, name], found
    if "--help" not in words:
        command.make_context(names[-1], words, resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"


def test_files_and_targets_that_the_docs_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"`((?:tests|pipelines|components|images|charts|docs)/[\w./-]+)`", text):
            assert (ROOT / name).exists(), f"{page}: {name}"
        assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets, page


def test_the_folders_that_the_readme_lists_are_those_there_are() -> None:
    [tree] = [block for block in blocks(ROOT / "README.md") if block.startswith("pipelines/")]
    parents = {0: ROOT}
    for line in tree.splitlines():
        names = re.match(r"\s*((?:[\w.-]+(?:\.\w+|/run|/) )*[\w.-]+(?:/run|\.\w+|/))(?=  |$)", line)
        indent = len(line) - len(line.lstrip())
        if names is None or indent > 4:
            continue  # a line that goes on
        for name in names[1].split():
            assert (parents[indent] / name).exists(), name
        parents[indent + 2] = parents[indent] / names[1].split()[-1]
    for folder in ("pipelines", "components/core"):
        packages = {path.parent.name for path in (ROOT / folder).glob("*/*.py")}
        assert all(re.search(rf"^ +.*\b{name}/", tree, re.M) for name in packages), packages


def test_the_pages_work_as_they_stand(tmp_path: Path, tiny_model: Path) -> None:
    """From nothing to a registered model and its pulled copy, by the commands of the pages."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my-base").symlink_to(tiny_model)
    words = ["cat", "mat", "one", "two", "three", "four", "five", "system", "user", "sat"]
    rows = [conversation(f"the {first} sat on {last}", last) for first in words for last in words]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "conversations.jsonl", rows)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("QLORA_STORE", "MLFLOW_TRACKING_URI")
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for block in [*blocks(ROOT / "docs" / "your-data.md", "sh"), *blocks(ROOT / "docs" / "serving.md", "sh")]:
        done = subprocess.run(
            ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, block + done.stdout + done.stderr
        if block.startswith("qlora init"):
            # What a person would edit: the tiny model learns at another rate than a real one.
            config = tmp_path / "my-model" / "run.yaml"
            options = {
                "prepare_dataset": {"eval_share": 0.2},
                "train_qlora": {"max_steps": 20, "batch_tokens": 512},
                "evaluate_model": {"generation_rows": 0},
            }
            config.write_text(config.read_text() + yaml.safe_dump({"learning_rate": 0.01, "options": options}))
    assert (tmp_path / "served" / "my-model" / "model" / "config.json").exists()


def test_the_example_of_7b_fits_24_gb_as_the_docs_say(tmp_path: Path) -> None:
    config = yaml.safe_load(EXAMPLE.read_text())
    run_file.load(EXAMPLE)
    totals = []
    for checkpointing in (True, False):
        config["base_model"] = str(CONFIGS / "llama-2-7b")
        config["options"]["train_qlora"]["gradient_checkpointing"] = checkpointing
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        result = CliRunner().invoke(main, ["plan", "--config", str(tmp_path / "run.yaml"), "--no-access"])
        assert result.exit_code == 0, result.output
        assert "fits a GPU of 22.5 GiB" in result.output
        totals.append(re.search(r"([\d.]+) GiB needed", result.output)[1])  # type: ignore[index]
    page = (ROOT / "docs" / "your-data.md").read_text()
    assert f"{totals[0]} GiB with checkpointing" in page and f"{totals[1]} GiB without" in page


def test_the_figures_of_a_7b_model_are_those_of_the_docs() -> None:
    found = architecture.read(CONFIGS / "llama-2-7b", TrainConfig())
    linear = sum(weight.numel for weight in found.weights if weight.quantised)
    nf4 = sum(memory.quantised_bytes(weight.numel) for weight in found.weights if weight.quantised)
    plain = sum(memory.quantised_bytes(weight.numel, double=False) for weight in found.weights if weight.quantised)
    rest = sum(memory.weight_bytes(weight) for weight in found.weights if not weight.quantised)
    constants, doubled = plain - linear / 2, nf4 - linear / 2
    figures = [
        f"{found.parameters / 1e9:.2f} billion\nparameters",
        f"{linear / 1e9:.2f} billion lie in linear layers",
        f"{8 * constants / linear:.1f} bits a parameter: {constants / 1e9:.2f} GB for 7B",
        f"{8 * doubled / linear:.3f} bits, {doubled / 1e9:.2f} GB",
        f"{8 * (plain - nf4) / linear:.3f} bits a parameter, {(plain - nf4) / 1e9:.2f} GB for 7B",
        f"a quantised parameter takes {8 * nf4 / linear:.3f} bits",
        f"{nf4 / 1e9:.2f} GB of NF4 and {rest / 1e9:.2f} GB of the rest, {(nf4 + rest) / 1e9:.2f} GB",
    ]
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "qlora.md").read_text())
    missing = [figure for figure in figures if re.sub(r"\s+", " ", figure) not in page]
    assert not missing, missing
