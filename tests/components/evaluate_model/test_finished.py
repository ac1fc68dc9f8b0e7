"""An evaluation is found again where model, rows, options and rivals are the same, and done again where one differs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.evaluate_model import score_table, scored_models, task
from tests.components.conftest import TinyRun, sealed
from tests.components.evaluate_model.conftest import Judge, altered
from tests.components.evaluate_model.test_champion import as_another_training, registered
from tests.components.evaluate_model.test_task import prepared, samples

CONFIG = EvaluateConfig(generation_rows=2, max_new_tokens=4)
Outcome = tuple[bool, task.Result]
"""Whether models were scored, and the step's result."""
Ask = Callable[..., Outcome]


@pytest.fixture
def kept(adapter: Path, tmp_path: Path) -> Path:
    """An adapter under a training_key of the test's own."""
    return sealed(Path(shutil.copytree(adapter, tmp_path / "kept")), training_key=tmp_path.name)


@pytest.fixture
def ask(judge: Judge, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Evaluates with the model's key, and says whether a model was scored."""
    scored: list[str] = []
    real = scored_models.score_model

    def score_model(name: str, *given: Any, **named: Any) -> Any:
        scored.append(name)
        return real(name, *given, **named)

    monkeypatch.setattr(scored_models, "score_model", score_model)

    def run(config: EvaluateConfig = CONFIG, **given: Any) -> Outcome:
        scored.clear()
        result = judge(config, **{"adapter": str(kept), "model_key": tmp_path.name} | given)
        return bool(scored), result

    return run


def evaluations(run: TinyRun, key: str) -> list[Path]:
    return sorted((run.folder / "store" / "evaluations" / key).glob("*/*"))


def outputs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "report.html", *sorted((folder / "scores").iterdir()))]


def test_the_same_evaluation_is_copied(ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, first = ask()
    assert done and "finished already" not in capsys.readouterr().out
    made = outputs(tmp_path)
    shutil.rmtree(tmp_path / "scores")
    (tmp_path / "report.html").unlink()
    assert ask(base_uri="nowhere") == (False, first) and outputs(tmp_path) == made
    said = capsys.readouterr().out
    assert "finished already: " in said and first.reason in said


def test_a_rejected_model_is_rejected_again_with_its_reason(ask: Ask, tmp_path: Path) -> None:
    config = EvaluateConfig(generation_rows=0, min_improvement=100)
    done, first = ask(config)
    assert done and not first.passed
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert ask(config) == (False, first) and (tmp_path / "report.html").read_text() == page


def test_without_a_key_the_work_is_done(ask: Ask, tiny_run: TinyRun, tmp_path: Path) -> None:
    assert ask(model_key="")[0] and not evaluations(tiny_run, tmp_path.name)
    ask()
    assert ask(model_key="")[0]


def test_another_option_other_rows_and_another_model_are_evaluated(
    ask: Ask, tiny_run: TinyRun, kept: Path, tmp_path: Path
) -> None:
    ask()
    assert ask(EvaluateConfig(generation_rows=2, max_new_tokens=4, confidence=0.9))[0]
    assert not ask(EvaluateConfig(generation_rows=2, max_new_tokens=4, eval_batch_tokens=512))[0], "the same answer"
    assert ask(**prepared(tmp_path, samples(tiny_run)[:-1]))[0]
    assert ask(eval_set=str(tiny_run.folder / "train.parquet"))[0], "another side of the same data"
    other = altered(kept, tmp_path / "other", lambda name, value: value * 0.5)
    assert ask(adapter=str(other))[0], "the same key made anew"
    assert len(evaluations(tiny_run, tmp_path.name)) == 5 and not ask()[0]


def test_another_champion_is_compared_with_and_the_same_content_is_not(ask: Ask, adapter: Path, tmp_path: Path) -> None:
    ask()
    rival = as_another_training(Path(shutil.copytree(adapter, tmp_path / "rival")))
    version = registered(str(rival), "")
    given = {"model_name": "judged", "champion_version": version}
    done, result = ask(**given)
    assert done and f"champion {version}" in result.reason
    assert ask(**given) == (False, result)
    # The number means another model now: MLflow gives that of a deleted last version again.
    sealed(rival, training_key="another still")
    assert ask(**given)[0]
    # The champion came out of this very training: nothing to compare, as at first.
    assert not ask(model_name="judged", champion_version=registered(str(tmp_path / "kept"), ""))[0]


@pytest.mark.parametrize("damage", ["scores/scores.parquet", "report", attempts.MANIFEST])
def test_a_damaged_evaluation_is_done_again(
    damage: str, ask: Ask, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first = ask()
    (found,) = evaluations(tiny_run, tmp_path.name)
    content = (found / damage).read_bytes()
    (found / damage).write_bytes(content[:-1])
    capsys.readouterr()
    assert ask() == (True, first)
    assert "warning: finished work is damaged and is done again: " in capsys.readouterr().out
    assert ask() == (False, first)


def test_the_merged_models_evaluation_depends_on_the_tuned_scores(
    ask: Ask, judged: task.Result, tiny_run: TinyRun, merged_uri: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(merged_uri, tmp_path / "merged"))
    sealed(folder, merge_key=tmp_path.name)
    scores = Path(shutil.copytree(tiny_run.folder / "scores", tmp_path / "tuned"))
    given = {"merged_uri": str(folder), "adapter": "", "adapter_scores": str(scores)}
    done, first = ask(**given)
    assert done and ask(**given) == (False, first)
    read = [score_table.read(str(scores), name) for name in ("base", "tuned")]
    score_table.write(str(scores), read[1:])
    assert ask(**given)[0]


def test_a_key_of_another_model_is_refused(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^model_key is other, and the adapter was made under {tmp_path.name}; give"):
        ask(model_key="other")


def test_tasks_in_files_are_evaluated_anew(ask: Ask, tiny_run: TinyRun, tmp_path: Path) -> None:
    """What a file says may change under its name."""
    pytest.importorskip("lm_eval")
    (tmp_path / "rows.json").write_text(json.dumps([{"question": "one", "answer": "two"}] * 2))
    (tmp_path / "task.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {tmp_path}/rows.json}}\ntest_split: train\n"
        "output_type: loglikelihood\ndoc_to_text: question\ndoc_to_target: answer\n"
    )
    config = EvaluateConfig(generation_rows=0, lm_eval_tasks=[str(tmp_path / "task.yaml")])
    assert ask(config)[0] and ask(config)[0] and not evaluations(tiny_run, tmp_path.name)
