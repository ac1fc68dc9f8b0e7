import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.scaffold.__main__ import make

ROOT = Path(__file__).parent.parent.parent


def test_a_new_step_passes_its_own_test_and_compiles(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "components", tmp_path / "components")
    make("count_words", tmp_path)
    code = (
        "from components.count_words.component import count_words as step;"
        "assert set(step.component_spec.outputs) == {'report', 'length'};"
        "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_bad_name_or_a_taken_one_is_refused() -> None:
    with pytest.raises(SystemExit, match="no verb_noun"):
        make("Words", ROOT)
    with pytest.raises(SystemExit, match="components/train_qlora exists"):
        make("train_qlora", ROOT)
