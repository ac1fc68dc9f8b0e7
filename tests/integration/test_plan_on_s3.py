"""plan_run and stage_base_model with base, data and store on S3, and an MLflow server that wants a login."""

from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.config.steps import StageConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.components.plan_run import preflight, sampling, task, weight_files
from qlora_pipelines.components.stage_base_model import task as stage
from tests.components.stage_base_model.hub_server import COMMIT, Hub, serve
from tests.conftest import conversation, write_jsonl


@pytest.fixture
def config(own_store: str, mlflow_server: str, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A run all of which lies on S3."""
    storage.upload(tiny_model, f"{own_store}/base")
    rows = write_jsonl(tmp_path / "rows.jsonl", [conversation(f"question {n}", "cat") for n in range(40)])
    storage.upload_file(rows, f"{own_store}/data/rows.jsonl")
    return {
        "base_model": f"{own_store}/base",
        "dataset_uri": f"{own_store}/data",
        "model_name": "planned",
        "max_length": 64,
    }


def plan(config: dict[str, Any], folder: Path) -> task.Result:
    return task.run(PlacedRun.parse(**config), report=str(folder / "plan.html"))


def test_a_run_on_s3_is_planned_and_its_base_used_where_it_lies(
    config: dict[str, Any], own_store: str, tmp_path: Path
) -> None:
    result = plan(config, tmp_path)
    assert result.listing_uri.startswith(f"{own_store}/listings/") and result.planned_host_mib > 0
    folders = {name.partition("/")[0] for name in storage.sizes(own_store)}
    assert folders == {"base", "data", "listings", "references", "tokenizers"}
    staged = stage.run(StageConfig(base_model=config["base_model"], base_revision=result.base_revision))
    assert staged.base_uri == config["base_model"]
    page = (tmp_path / "plan.html").read_text()
    for text in ("Nothing stands in the way", "lets one register", "the files hold all 20 parameters of config.json"):
        assert text in page


def test_headers_and_parquet_rows_are_read_from_s3(
    config: dict[str, Any], own_store: str, tiny_model: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    from qlora_pipelines.components.core.data import listing

    assert weight_files.read(config["base_model"], "") == weight_files.read(str(tiny_model), "")
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([{"text": "cat"}] * 7), path)
    storage.upload_file(path, f"{own_store}/rows.parquet")
    file = listing.first_file(listing.make(f"{own_store}/rows.parquet")["train"])
    start = sampling.first_rows(file)
    assert (len(start.rows), start.total_rows) == (7, 7)


def test_a_torn_base_on_s3(config: dict[str, Any], own_store: str, tiny_model: Path, tmp_path: Path) -> None:
    whole = (tiny_model / "model.safetensors").read_bytes()
    storage.write_bytes(f"{own_store}/base/model.safetensors", whole[:-8])
    assert refused(config, tmp_path) == (
        f"{own_store}/base/model.safetensors is torn: it has {len(whole) - 8} bytes, its header says"
        f" {len(whole)}; fetch it again"
    )


def refused(config: dict[str, Any], folder: Path) -> str:
    with pytest.raises(InputError) as error:
        plan(config, folder)
    return str(error.value)


def test_a_wrong_password(
    config: dict[str, Any], mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-password")
    assert refused(config, tmp_path) == (
        f"MLflow at {mlflow_server} refuses this login: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


@pytest.mark.parametrize("option", ["base_model", "dataset_uri"])
def test_no_such_bucket(config: dict[str, Any], tmp_path: Path, option: str) -> None:
    text = refused(config | {option: "s3://no-such-bucket/there"}, tmp_path)
    assert text == (
        "s3://no-such-bucket/there: there is no such bucket; check the address, the endpoint and the credentials"
    )


def test_no_such_store(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.STORE_VARIABLE, "s3://no-such-bucket/store")
    text = refused(config, tmp_path)
    assert text.startswith("s3://no-such-bucket/store/probe-") and text.count("\n") == 0
    assert "there is no such bucket; check the address" in text


def test_a_hub_model_is_staged_to_s3_once(own_store: str, tiny_model: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    with serve(Hub(files)) as hub:
        config = StageConfig(base_model="org/model", base_revision=COMMIT)
        uri = stage.run(config).base_uri
        assert uri == f"{own_store}/bases/org--model/{COMMIT}/files"
        asked = len(hub.requests)
        assert stage.run(config).base_uri == uri and len(hub.requests) == asked
    assert weight_files.read(uri, "") == weight_files.read(str(tiny_model), "")
    for name in ("config.json", "model.safetensors"):
        assert storage.read_bytes(f"{uri}/{name}") == files[name]


def test_a_base_on_s3_that_changed_is_refused(config: dict[str, Any], own_store: str) -> None:
    revision = base_model.resolve(config["base_model"], "")
    storage.write_bytes(f"{own_store}/base/config.json", b"{}")
    with pytest.raises(InputError, match=f"its files are not those of revision {revision[:19]}; they are sha256-"):
        stage.run(StageConfig(base_model=config["base_model"], base_revision=revision))


def test_all_checks_are_made_before_any_is_reported(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-password")
    monkeypatch.setenv(storage.STORE_VARIABLE, "s3://no-such-bucket/store")
    wrong = config | {"base_model": "s3://no-such-bucket/base", "dataset_uri": "s3://no-such-bucket/rows"}
    found = preflight.run(PlacedRun.parse(**wrong), tmp_path)
    assert [finding.subject for finding in found.findings if finding.level == "fatal"] == [
        "MLflow",
        "base model",
        "data",
        "store",
    ]
