"""A store and an MLflow for each model; MLflow's tables are made once, which takes seconds."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without content."""
    import mlflow

    path: Path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def place(tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, with store and MLflow in it and named by the environment."""
    shutil.copy(tables, tmp_path / "mlflow.db")
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path
