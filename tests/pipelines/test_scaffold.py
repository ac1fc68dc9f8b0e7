import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.scaffold.__main__ import make

ROOT = Path(__file__).parent.parent.parent


def test_two_new_steps_pass_their_own_tests_and_the_checks(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "components", tmp_path / "components")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    made = [
        str(path) for name in ("count_words", "drop_words") for path in make(name, tmp_path) if "tests" not in str(path)
    ]
    code = (
        "from components.count_words.component import count_words as step;"
        "assert set(step.component_spec.outputs) == {'report', 'length'};"
        "import pytest, sys; sys.exit(pytest.main(['-p', 'no:cacheprovider', 'tests']))"
    )
    for command, said in (
        (["-c", code], "4 passed"),
        (["-m", "mypy", "--cache-dir", "cache", *made], "no issues found"),
        (["-m", "ruff", "check", "--no-cache", "."], "All checks passed"),
    ):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr


def test_a_bad_name_or_a_taken_one_is_refused() -> None:
    with pytest.raises(SystemExit, match="no verb_noun"):
        make("Words", ROOT)
    with pytest.raises(SystemExit, match="components/train_qlora exists"):
        make("train_qlora", ROOT)
