"""A run that a trigger started: its key must be the one it was started for, and of several runs one passes."""

from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import claims
from qlora_pipelines.components.plan_run import task
from qlora_pipelines.pipelines.triggers import new_data
from tests.conftest import conversation, write_jsonl


@pytest.fixture
def config(place: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> PlacedRun:
    monkeypatch.setattr(claims, "PAUSE", 0.1)
    rows = write_jsonl(place / "rows.jsonl", [conversation(f"question {n}", "cat") for n in range(40)])
    return PlacedRun(base_model=str(tiny_model), dataset_uri=str(rows), model_name="tiny", max_length=64)


def plan(config: PlacedRun, place: Path, **given: Any) -> task.Result:
    return task.run(config, report=str(place / "plan.html"), **given)


def test_a_triggers_keys_are_those_of_the_plan(config: PlacedRun, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(config, place)
    monkeypatch.delenv("QLORA_STORE")  # a trigger needs none
    found = new_data.snapshot(config)
    assert found.keys._asdict() == {name: getattr(planned, name) for name in found.keys._fields}
    assert found.data_digest == planned.data_digest


def test_a_run_with_another_key_than_it_was_started_for_ends(config: PlacedRun, place: Path) -> None:
    key = plan(config, place).training_key
    assert plan(config, place, training_key=key).training_key == key
    (place / "rows.jsonl").write_text((place / "rows.jsonl").read_text() * 2)
    with pytest.raises(InputError, match=f"not {key[:12]}: base, data or options are no longer those"):
        plan(config, place, training_key=key)


def test_of_two_runs_with_a_claim_one_passes(config: PlacedRun, place: Path) -> None:
    key = plan(config, place).training_key
    first, second = str(claims.new(1)), str(claims.new(1))
    plan(config, place, training_key=key, claim=first, run_id="one")
    with pytest.raises(InputError, match="run one makes the same model and passed this point already"):
        plan(config, place, training_key=key, claim=second, run_id="two")
    plan(config, place, training_key=key, claim=str(claims.new(2)), run_id="three")
    with pytest.raises(InputError, match="claim is given without training_key"):
        plan(config, place, claim=first, run_id="four")
