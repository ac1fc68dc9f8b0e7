"""`qlora trigger` against a server that speaks v2beta1: real data, real keys, what is started and what is not."""

import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest
import yaml
from click.testing import CliRunner, Result

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.store import claims
from qlora_pipelines.pipelines.cli.main import main
from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from qlora_pipelines.pipelines.kfp_api import runs
from qlora_pipelines.pipelines.triggers import new_data, on_kubeflow
from qlora_pipelines.pipelines.triggers.decision import Decision
from tests.conftest import conversation, write_jsonl
from tests.pipelines.kfp_api.state import Fault, Kfp, look, task


@pytest.fixture
def data(place: Path) -> Path:
    folder = place / "data"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [conversation(f"question {n}", "cat") for n in range(20)])
    return folder


@pytest.fixture
def config(place: Path, data: Path, tiny_model: Path) -> Path:
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump({"base_model": str(tiny_model), "dataset_uri": str(data), "model_name": "tickets"}))
    return path


def invoke(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["trigger", "--config", str(config), "--pipeline", str(GOLDEN), *arguments])


def trigger(config: Path, *arguments: str) -> dict[str, Any]:
    result = invoke(config, "--json", *arguments)
    assert result.stdout, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found | {"exit_code": result.exit_code}


def test_a_run_is_started_once(kfp: Kfp, config: Path, data: Path) -> None:
    found = trigger(config)
    run = kfp.only_run()
    key = found["training_key"]
    assert (found["action"], found["run_id"], found["exit_code"]) == ("started", run.run_id, 0)
    assert run.display_name.endswith(f"-{key[:12]}")
    given = run.runtime_config.parameters
    assert given["training_key"] == key and claims.parse(given["claim"]).attempt == 1
    values = yaml.safe_load(config.read_text())
    assert new_data.snapshot(RunConfig.parse(**values)).keys.training_key == key
    assert f"data_digest {found['data_digest']}" in run.description
    assert trigger(config)["action"] == "running"
    run.state = "SUCCEEDED"
    assert trigger(config)["action"] == "unchanged"
    write_jsonl(data / "b.jsonl", [conversation("more", "cat")])
    again = trigger(config)
    assert again["action"] == "started" and again["training_key"] != key and len(kfp.runs) == 2


def test_what_it_says_to_people(kfp: Kfp, config: Path) -> None:
    assert invoke(config, "--dry-run").stdout.startswith("would start: no run has this training_key (training_key ")
    assert not kfp.runs
    lines = invoke(config).stdout.splitlines()
    assert lines[0].startswith("started: ") and lines[1].startswith(f"{kfp.url}/#/runs/details/")
    assert invoke(config).stdout.startswith("running: run ")


def test_other_options_and_another_model_are_other_work(kfp: Kfp, config: Path) -> None:
    trigger(config)
    assert trigger(config, "--set", "learning_rate=0.001")["action"] == "started"
    assert trigger(config, "--set", "gpu_memory_gib=80")["action"] == "running"  # is in no key
    assert trigger(config, "--set", "model_name=other")["action"] == "started"
    assert len(kfp.runs) == 3


def ended(kfp: Kfp, state: str, minutes: float) -> None:
    """The newest run ended so many minutes ago."""
    run = list(kfp.runs.values())[-1]
    run.state, run.finished_at = state, datetime.now(UTC) - timedelta(minutes=minutes)
    run.created_at = run.finished_at


def test_a_failed_run_is_tried_again_after_a_delay_and_not_for_ever(kfp: Kfp, config: Path) -> None:
    rules = ("--max-attempts", "2", "--retry-delay", "5")
    trigger(config)
    ended(kfp, "FAILED", 1)
    waiting = trigger(config, *rules)
    assert (waiting["action"], waiting["exit_code"]) == ("waiting", 0)
    ended(kfp, "FAILED", 6)
    again = trigger(config, *rules)
    assert again["action"] == "started" and again["attempt"] == 2 and len(kfp.runs) == 2
    ended(kfp, "FAILED", 6)
    last = trigger(config, *rules)
    assert (last["action"], last["exit_code"]) == ("failed", 1)
    assert trigger(config, *rules, "--force")["action"] == "started"
    assert claims.parse(list(kfp.runs.values())[-1].runtime_config.parameters["claim"]).attempt == 3


def test_what_a_person_cancelled_stays_cancelled(kfp: Kfp, config: Path) -> None:
    trigger(config)
    ended(kfp, "CANCELED", 100)
    found = trigger(config)
    assert (found["action"], found["exit_code"]) == ("cancelled", 0)
    kfp.only_run().state = "FAILED"
    kfp.only_run().state_history = [api.V2beta1RuntimeStatus(state="CANCELING")]
    assert trigger(config)["action"] == "cancelled"


def test_it_waits_while_data_is_still_being_written(kfp: Kfp, config: Path, data: Path) -> None:
    found = trigger(config, "--quiet-minutes", "10")
    assert found["action"] == "waiting" and "the data was last written" in found["reason"]
    os.utime(data / "a.jsonl", (time.time() - 700,) * 2)
    assert trigger(config, "--quiet-minutes", "10")["action"] == "started"


def test_a_minimum_of_new_rows(kfp: Kfp, config: Path, data: Path) -> None:
    few = trigger(config, "--min-new-rows", "30")
    assert (few["action"], few["reason"]) == ("waiting", "20 rows are new; --min-new-rows asks for 30")
    assert trigger(config, "--min-new-rows", "20")["action"] == "started"
    listing.save(listing.make(str(data)))  # as plan_run of that run does
    write_jsonl(data / "b.jsonl", [conversation(f"more {n}", "cat") for n in range(9)])
    assert trigger(config, "--min-new-rows", "10")["reason"] == "9 rows are new; --min-new-rows asks for 10"
    assert trigger(config, "--min-new-rows", "9")["action"] == "started"
    # Relative to the last run that did not fail.
    ended(kfp, "FAILED", 100)
    write_jsonl(data / "c.jsonl", [conversation("one more", "cat")])
    assert trigger(config, "--min-new-rows", "10")["action"] == "started"


def test_many_runs_are_listed_page_by_page(kfp: Kfp, config: Path) -> None:
    trigger(config)
    (key,) = {run.runtime_config.parameters["training_key"] for run in kfp.runs.values()}
    first = kfp.only_run()
    first.state = "SUCCEEDED"
    # Before it in the list are runs whose names end alike but whose keys differ.
    for n in range(150):
        copy = type(first)(run_id=f"{n:04d}", display_name=f"other-{key[:12]}", state="RUNNING",
                           created_at=datetime(2020, 1, 1, tzinfo=UTC))  # fmt: skip
        kfp.runs[copy.run_id] = copy
    assert trigger(config)["run_id"] == first.run_id
    assert kfp.count("GET .*/runs$") >= 4


def test_of_two_that_start_at_the_same_moment_the_earlier_stays(
    kfp: Kfp, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LIST_DELAY", 0.5)
    barrier = threading.Barrier(4)
    start = on_kubeflow.KubeflowRuns.start

    def together(self: on_kubeflow.KubeflowRuns, *arguments: Any) -> Decision:
        barrier.wait()
        return start(self, *arguments)

    monkeypatch.setattr(on_kubeflow.KubeflowRuns, "start", together)
    keys = new_data.snapshot(RunConfig.parse(**yaml.safe_load(config.read_text()))).keys
    results: list[Decision] = []

    def work() -> None:
        from qlora_pipelines.pipelines.compiler import compiled
        from qlora_pipelines.pipelines.kfp_api.client import Server

        place = on_kubeflow.KubeflowRuns(Server(kfp.url), keys.training_key, "tickets")
        pipeline = compiled.from_file(GOLDEN)
        results.append(
            place.start(runs.RunRequest(pipeline, {"model_name": "tickets"}, "", "e", "m"), Decision("start", "", 1))
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alive = [run for run in kfp.runs.values() if run.run_id not in kfp.terminated]
    first = min(kfp.runs.values(), key=lambda run: str(run.runtime_config.parameters["claim"]))
    assert [run.run_id for run in alive] == [first.run_id] == list({decision.run_id for decision in results})
    assert sum(decision.action == "started" for decision in results) == 1 and len(kfp.runs) == 4


def test_a_surplus_run_that_may_be_past_plan_run_is_not_ended(
    kfp: Kfp, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_kubeflow, "TERMINATE_WITHIN", 0.0)

    def rival(run: Any) -> None:
        given = dict(run.runtime_config.parameters) | {"claim": "1-20200101T000000.000000Z-00000000"}
        other = type(run)(run_id="rival", display_name=run.display_name, state="RUNNING", created_at=run.created_at,
                          runtime_config=type(run.runtime_config)(parameters=given))  # fmt: skip
        kfp.runs["rival"] = other

    kfp.created = rival
    assert trigger(config)["action"] == "started"
    assert not kfp.terminated
    monkeypatch.setattr(on_kubeflow, "TERMINATE_WITHIN", 10.0)
    found = trigger(config, "--force")
    assert found["action"] == "started"  # the rival's attempt was the first


@pytest.mark.parametrize("done", [True, False], ids=["it was created", "it was not"])
def test_a_creation_without_an_answer_makes_one_run(kfp: Kfp, config: Path, done: bool) -> None:
    kfp.faults = [Fault("POST .*/runs$", 503, done=done)]
    assert trigger(config)["run_id"] == kfp.only_run().run_id


def test_wait_also_follows_a_run_that_is_running_already(kfp: Kfp, config: Path) -> None:
    kfp.life = [look("RUNNING", task("plan-run", "RUNNING")), look("SUCCEEDED", task("register-model", "SUCCEEDED"))]
    assert trigger(config, "--wait")["outcome"] == "done"
    kfp.only_run().state = "RUNNING"
    kfp.life = [look("CANCELED")]
    found = trigger(config, "--wait")
    assert (found["action"], found["outcome"], found["exit_code"]) == ("running", "cancelled", 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "nothing there; give a file"), ("notes.pdf", "is not read"), (".part", "hidden files are not read")],
)
def test_bad_data_is_one_line_and_nothing_is_sent(kfp: Kfp, config: Path, data: Path, name: str, message: str) -> None:
    (data / "a.jsonl").unlink()
    if name:
        (data / name).write_text("x")
    result = invoke(config)
    assert result.exit_code == 1 and message in result.output and result.output.count("\n") == 1
    assert not kfp.requests


def test_a_pipeline_file_is_not_for_a_local_run(config: Path) -> None:
    result = invoke(config, "--local")
    assert result.exit_code == 2 and "--local runs this installation's pipeline; leave out --pipeline" in result.output


def test_data_from_the_command_line_wins(kfp: Kfp, config: Path, place: Path) -> None:
    other = write_jsonl(place / "other.jsonl", [conversation("a", "b")] * 3)
    trigger(config, "--data", str(other))
    assert kfp.only_run().runtime_config.parameters["dataset_uri"] == str(other)
