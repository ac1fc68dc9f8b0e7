"""Two teams, each with the chart in a namespace of its own, on a Kubeflow Pipelines that has several users."""

import os
from pathlib import Path

import kfp_server_api
import pytest

from tests.cluster.conftest import Installed, install
from tests.cluster.test_runs import config


def test_two_teams_do_not_see_each_others_runs_and_models(
    installed: Installed, tiny_model: Path, tmp_path: Path
) -> None:
    if not installed.team:
        pytest.skip("Kubeflow Pipelines has one user here")
    if not (namespace := os.environ.get("QLORA_TEST_OTHER")):
        pytest.skip("QLORA_TEST_OTHER names no second namespace")
    with install(namespace, tiny_model) as other:
        folders = {team: tmp_path / team.cluster.namespace for team in (installed, other)}
        runs = {}
        for team, folder in folders.items():
            folder.mkdir()
            runs[team] = team.submit(config(team, folder, "tiny-team"), folder)
            assert runs[team]["code"] == 0, runs[team]["log"]
            pods = team.cluster.get("pod", selector=f"pipeline/runid={runs[team]['run_id']}")
            assert pods, "the run's pods are in the team's namespace"
            pulled = team.qlora("pull", "models:/tiny-team/1", "--to", str(folder / "model"))
            assert pulled.returncode == 0, pulled.stderr
        with pytest.raises(kfp_server_api.ApiException) as refused:
            kfp_server_api.RunServiceApi(other.kubeflow()).run_service_get_run(runs[installed]["run_id"])
        assert refused.value.status == 403
        elsewhere = other.qlora("submit", "--config", "run.yaml", "--namespace", installed.cluster.namespace,
                                folder=folders[other])  # fmt: skip
        assert elsewhere.returncode == 1 and len(elsewhere.stderr.splitlines()) == 1, elsewhere.stderr
