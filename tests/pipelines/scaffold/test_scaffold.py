import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qlora_pipelines.pipelines.scaffold.__main__ import make

ROOT = Path(__file__).parents[3]


def test_two_new_steps_pass_their_own_tests_and_the_checks(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "components", tmp_path / "components")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    typed = tmp_path / ".venv" / "typed"
    (typed / "qlora_pipelines").mkdir(parents=True)
    (typed / "qlora_pipelines" / "components").symlink_to(tmp_path / "components")
    names = ("add_words", "drop_words")  # in the order of imports one is before core, one after it
    for name in names:
        make(name, tmp_path)
    packages = [f"qlora_pipelines.components.{name}" for name in names]
    listed = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(packages) < set(listed) and listed == sorted(listed)
    code = (
        "from qlora_pipelines.components.add_words.component import add_words as step;"
        "assert set(step.component_spec.outputs) == {'report', 'length'};"
        "import pytest, sys; sys.exit(pytest.main(['-p', 'no:cacheprovider', 'tests']))"
    )
    for command, said in (
        (["-c", code], "4 passed"),
        (
            ["-m", "mypy", "--cache-dir", "cache", *(part for name in packages for part in ("-p", name))],
            "no issues found",
        ),
        (["-m", "ruff", "check", "--no-cache", "."], "All checks passed"),
    ):
        environment = os.environ | {"PYTHONPATH": str(typed)}
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr


def test_a_bad_name_or_a_taken_one_is_refused() -> None:
    with pytest.raises(SystemExit, match="not verb_noun"):
        make("Words", ROOT)
    with pytest.raises(SystemExit, match="components/train_qlora exists"):
        make("train_qlora", ROOT)
