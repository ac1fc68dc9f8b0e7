"""How a step of a run ended, as it leaves it in the store."""

import json
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.step import step
from qlora_pipelines.components.core.store import outcomes
from qlora_pipelines.components.core.store.outcomes import Outcome

RUN = "5f0e7f0a-0000-4000-8000-000000000001"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv(outcomes.RUN_VARIABLE, RUN)
    monkeypatch.setenv("QLORA_STEP", "")
    return tmp_path / "store"


def test_a_step_that_is_done_says_so_with_what_it_told(own_store: Path) -> None:
    with step("evaluate_model"):
        assert outcomes.read(RUN)["evaluate_model"] == Outcome("evaluate_model", "running", "", {})
        outcomes.tell(passed=True, reason="Passed.")
    told = Outcome("evaluate_model", "done", "", {"passed": True, "reason": "Passed."})
    assert outcomes.read(RUN) == {"evaluate_model": told}
    assert [path.relative_to(own_store).as_posix() for path in own_store.rglob("*.json")] == [
        f"runs/{RUN}/evaluate_model.json"
    ]
    with step("plan_run"):
        pass
    assert outcomes.read(RUN)["plan_run"].facts == {}, "what another step told is not its own"


def test_a_step_that_fails_leaves_its_line() -> None:
    with pytest.raises(SystemExit, match="1"), step("train_qlora"):
        raise InputError("the loss is NaN at step 3")
    assert outcomes.read(RUN)["train_qlora"] == Outcome("train_qlora", "failed", "the loss is NaN at step 3", {})
    with step("train_qlora"):  # a retry
        pass
    assert outcomes.read(RUN)["train_qlora"].ended == "done"


def test_a_step_that_is_stopped_is_still_running() -> None:
    with pytest.raises(KeyboardInterrupt), step("train_qlora"):
        raise KeyboardInterrupt
    assert outcomes.read(RUN)["train_qlora"].ended == "running"


def test_an_outcome_has_no_secret(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    with pytest.raises(SystemExit), step("plan_run"):
        raise ValueError("hf_abcdefgh at https://me:secret1@example.com with wJalrXUtnFEMI " + "long " * 1000)
    text = next(own_store.rglob("plan_run.json")).read_text()
    assert "hf_abcdefgh" not in text and "wJalrXUtnFEMI" not in text and "secret1" not in text
    assert "https://example.com" in text and len(text) < 2000


def test_a_store_that_is_away_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "file"))
    with step("plan_run"):
        pass
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and all("outcome is not in the store" in line for line in said[:2]) and "done in" in said[2]
    with pytest.raises(SystemExit), step("plan_run"):
        raise InputError("no such data")
    warning, error = capsys.readouterr().out.splitlines()
    assert "outcome is not in the store" in warning and error == "[plan_run] error: no such data"
    monkeypatch.delenv("QLORA_STORE")
    with step("plan_run"):
        pass


@pytest.mark.parametrize("run_id", ["../../etc", "a/b", ".hidden", "a" * 300])
def test_a_run_id_is_no_path(run_id: str, own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(outcomes.RUN_VARIABLE, run_id)
    with step("plan_run"):
        pass
    assert not own_store.exists()
    with pytest.raises(InputError, match="QLORA_RUN_ID is"):
        outcomes.read(run_id)


def test_without_a_run_nothing_is_written(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(outcomes.RUN_VARIABLE)
    with step("plan_run"):
        outcomes.tell(a=1)
    assert not own_store.exists()


def test_a_file_that_no_step_wrote_is_passed_over(own_store: Path) -> None:
    (own_store / "runs" / RUN).mkdir(parents=True)
    for name, text in {"a.json": "{", "b.json": '{"step": "b"}', "c.json": "[]"}.items():
        (own_store / "runs" / RUN / name).write_text(text)
    good = {"step": "plan_run", "ended": "done", "error": "", "facts": {}}
    (own_store / "runs" / RUN / "plan_run.json").write_text(json.dumps(good))
    assert outcomes.read(RUN) == {"plan_run": Outcome(**good)}
