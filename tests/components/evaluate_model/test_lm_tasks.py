import json
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.evaluate_model import lm_tasks


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A task of our own, as lm-eval describes them, with data on disk."""
    rows = [{"question": "the cat sat on", "choices": ["mat", "one"], "answer": 0}] * 3
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "sitting.yaml"
    path.write_text(
        f"""task: sitting
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.json"}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
    )
    return path


def test_a_task_gives_its_figures_by_name(tiny_model: Path, task_file: Path) -> None:
    model, tokenizer = loading.load_16bit(tiny_model).eval(), loading.load_tokenizer(tiny_model)
    lm_tasks.check([str(task_file)])
    found = lm_tasks.run(model, tokenizer, [str(task_file)], batch_size=2)
    assert set(found) == {"sitting/acc"} and found["sitting/acc"] in (0.0, 1.0)


def test_an_unknown_task_is_named_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="lm-eval knows no task hellaswagg"):
        lm_tasks.check(["hellaswagg"])


def test_without_lm_eval_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'qlora-pipelines\[lm-eval\]'"):
        lm_tasks.check(["hellaswag"])


def test_a_task_whose_data_is_gone_says_so_in_one_line(tiny_model: Path, task_file: Path) -> None:
    (task_file.parent / "rows.json").unlink()
    model, tokenizer = loading.load_16bit(tiny_model).eval(), loading.load_tokenizer(tiny_model)
    with pytest.raises(InputError, match=r"lm_eval_tasks .*sitting.yaml: "):
        lm_tasks.run(model, tokenizer, [str(task_file)], batch_size=2)
