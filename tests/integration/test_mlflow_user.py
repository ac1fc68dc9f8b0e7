"""The user that runs log in to MLflow as, on a server with logins: what it can do, and what it cannot."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.server import get_app_client

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import champion, mlflow_client, references
from qlora_pipelines.components.core.registry import versions as versions_of
from qlora_pipelines.components.core.registry.training_runs import EXPERIMENT
from qlora_pipelines.components.train_qlora.mlflow_run import MlflowRun
from tests.integration import servers
from tests.integration.registered import Make, aliases, qlora, register, versions

RUNS, ANNA = ("runs", "a-long-password-of-runs"), ("anna", "a-long-password-of-anna")
ADMIN = (servers.ADMIN, servers.ADMIN_PASSWORD)
As = Callable[[tuple[str, str]], Any]


@pytest.fixture(scope="module")
def address(s3_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own: the experiments of runs have fixed names."""
    pytest.importorskip("flask_wtf", reason="MLflow's logins need Flask-WTF")
    with servers.mlflow(tmp_path_factory.mktemp("mlflow"), f"{s3_store}/mlflow-user") as found:
        yield found


@pytest.fixture
def log_in(address: str, own_store: str, monkeypatch: pytest.MonkeyPatch) -> As:
    """Logs in as a user from here on; returns MLflow's client."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

    def log_in(user: tuple[str, str]) -> Any:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", user[1])
        return mlflow.MlflowClient(address, address)

    return log_in


@pytest.fixture
def make_user(log_in: As, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs what the chart's job runs; the lines that it prints."""

    def make_user(user: tuple[str, str] = RUNS, by: tuple[str, str] = ADMIN, code: int = 0) -> list[str]:
        log_in(by)
        monkeypatch.setenv("QLORA_MLFLOW_USERNAME", user[0])
        monkeypatch.setenv("QLORA_MLFLOW_PASSWORD", user[1])
        result = qlora("mlflow-user")
        assert result.exit_code == code and not {user[1], by[1]} & set(result.output.split()), result.output
        return result.output.splitlines()

    return make_user


def users(address: str) -> Any:
    return get_app_client("basic-auth", address)


def refused(write: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(mlflow.MlflowException) as error:
        write(*arguments)
    assert error.value.error_code == "PERMISSION_DENIED"


def train(key: str) -> None:
    with MlflowRun(key, {"rank": 8}) as run:
        run.log(1, {"loss": 0.5})


def test_runs_on_a_server_that_was_the_administrators_until_now(
    make_user: Callable[..., list[str]], log_in: As, make_merged: Make, own_store: str, address: str, tmp_path: Path
) -> None:
    log_in(ADMIN)  # as the steps of version 0.1 did
    train("training-old")
    assert register("old", make_merged(own_store, "old")).outcome == "champion"
    register("kept", make_merged(own_store, "kept"))
    by_hand = log_in(ADMIN)
    by_hand.create_registered_model("by-hand")
    users(address).create_user(*ANNA)
    log_in(ANNA)  # with `qlora run`
    register("annas", make_merged(own_store, "annas"))

    log_in(ADMIN)
    users(address).create_user(*RUNS)
    users(address).grant_user_permission(RUNS[0], "registered_model", "kept", "READ")
    assert make_user() == [
        "user runs: it was there, its password is set",
        f"experiment {EXPERIMENT}: runs gets EDIT",
        "registered model kept: runs has READ and keeps it, because it was given by hand; runs need MANAGE",
        "experiment kept: runs gets MANAGE",
        "registered model old: runs gets MANAGE",
        "experiment old: runs gets MANAGE",
    ]
    again = make_user()
    assert [line for line in again if "gets" in line] == []
    assert users(address).get_user(RUNS[0]).is_admin is False

    client = log_in(RUNS)
    train("training-new")
    train("training-old")  # a resumed training goes on in the administrator's run
    found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert {run.info.status for run in found} == {"FINISHED"} and len(found) == 2
    report = tmp_path / "data.html"
    report.write_text("what was read")
    merged = make_merged(own_store, "two")
    given = {"champion_version": "1", "reports": {"data": str(report)}}
    with ThreadPoolExecutor(4) as pool:  # what some of them make in vain is deleted again
        results = set(pool.map(lambda _: register("old", merged, **given), range(4)))
    assert {result.outcome for result in results} == {champion.CHAMPION}
    [number] = {result.model_version for result in results}
    assert len(versions("old")) == 2
    assert aliases("old") == {"champion": number, "candidate": number, "previous": "1"}
    run_id = client.get_model_version("old", number).run_id
    assert Path(client.download_artifacts(run_id, "reports/data.html")).read_text() == "what was read"
    for name in ("annas", "by-hand", "kept"):
        with pytest.raises(InputError, match=f"registering versions of {name}: MLflow gives this login no permission"):
            mlflow_client.check_registering(client, name)
    mlflow_client.check_registering(client, "old")


def test_a_new_user_trains_registers_and_pulls_and_changes_nothing_of_others(
    make_user: Callable[..., list[str]], log_in: As, make_merged: Make, own_store: str, address: str, name: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    runs = (f"runs-{name}", "a-password-that-was-made")
    assert make_user(runs)[0] == f"user {runs[0]}: made"
    admin = log_in(ADMIN)
    admin.create_registered_model(f"others-{name}")
    others = admin.create_experiment(f"others-{name}")

    client = log_in(runs)
    mlflow_client.check_registering(client, name)
    assert register(name, make_merged(own_store, "one")).outcome == "champion"
    mlflow_client.check_registering(client, name)
    assert register(name, make_merged(own_store, "two"), champion_version="1").outcome == "champion"
    assert qlora("rollback", name).exit_code == 0
    assert aliases(name) == {"champion": "1", "candidate": "2", "previous": "2"}
    assert qlora("gc", "--dry-run").exit_code == 0
    assert references.registry_id(client)
    result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "pulled")
    assert result.exit_code == 0 and (tmp_path / "pulled" / "manifest.json").exists(), result.output

    refused(client.delete_registered_model, f"others-{name}")
    refused(client.set_registered_model_tag, f"others-{name}", "ours", "now")
    refused(client.create_model_version, f"others-{name}", f"{own_store}/merged")
    refused(client.create_run, others)
    refused(client.delete_experiment, others)
    own = users(address)
    refused(own.create_user, "more", "a-long-password-of-more")
    refused(own.update_user_admin, runs[0], True)
    refused(own.update_user_password, ADMIN[0], "a-long-password-of-ours")
    refused(own.grant_user_permission, runs[0], "registered_model", f"others-{name}", "MANAGE")


def test_a_changed_password(make_user: Callable[..., list[str]], log_in: As, name: str) -> None:
    before, after = (name, "the-password-of-before"), (name, "the-password-of-after")
    make_user(before)
    assert make_user(after)[0] == f"user {name}: it was there, its password is set"
    log_in(after)
    mlflow_client.connect()
    log_in(before)
    with pytest.raises(InputError, match="refuses this login"):
        mlflow_client.connect()


def test_what_is_refused_is_one_line(make_user: Callable[..., list[str]], log_in: As, address: str, name: str) -> None:
    wrong, short = (ADMIN[0], "not-the-admins-password"), (name, "short")
    login = "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    assert make_user(by=wrong, code=1) == [
        f"error: as the administrator admin: MLflow at {address} refuses this login: {login}"
    ]
    [line] = make_user(short, code=1)
    assert line.startswith(f"error: making the user {name} as admin: MLflow: ") and "at least 12 characters" in line
    user = (name, "a-password-that-was-made")
    make_user(user)
    assert make_user(("more", "a-long-password-of-more"), by=user, code=1) == [
        f"error: making the user more as {name}: MLflow gives this login no permission for it"
    ]


def test_an_administrator_is_left_alone(
    make_user: Callable[..., list[str]], log_in: As, address: str, name: str
) -> None:
    log_in(ADMIN)
    second = (name, "a-password-that-was-made")
    users(address).create_user(*second)
    users(address).update_user_admin(name, True)
    assert make_user((name, "a-password-of-the-secret")) == [
        f"warning: nothing is done: {name} is an administrator; give runs a user of their own"
    ]
    log_in(second)
    mlflow_client.connect()


def test_a_model_that_is_not_there_has_no_champion(make_user: Callable[..., list[str]], log_in: As) -> None:
    """MLflow says of its alias that the user has no permission, not that there is no such model."""
    make_user()
    client = log_in(RUNS)
    assert champion.current_version(client, "never-registered") == ""
    with pytest.raises(InputError, match="no model never-registered is registered"):
        versions_of.resolve(client, "models:/never-registered@champion")
