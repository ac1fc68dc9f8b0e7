"""Helm itself installs, tests, upgrades and uninstalls the chart, against an API that keeps what it is given."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.charts.api_server import Cluster, serving
from tests.charts.rendering import CHART, NAMESPACE, RELEASE, helm, merged, values

SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "qlora-s3"}}
COOKIES = "MLFLOW_FLASK_SERVER_SECRET_KEY"


def admin(name: str) -> dict[str, Any]:
    """A secret with the login of MLflow's administrator."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {COOKIES: "a2V5"}}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(NAMESPACE)


@pytest.fixture
def releases(cluster: Cluster) -> Iterator[Any]:
    """Helm's releases on that cluster."""
    with serving(cluster) as address:
        access = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "", "namespace": NAMESPACE}}],
            "current-context": "here",
        }
        with helm.Config(
            kubeconfig_content=yaml.safe_dump(access),
            namespace=NAMESPACE,
            storage_driver="memory",
            qps=1000.0,
            burst_limit=1000,
        ) as config:
            yield config


def test_uninstall_leaves_nothing(cluster: Cluster, releases: Any) -> None:
    cluster.put("Secret", "qlora-s3", SECRET)
    releases.install(str(CHART), RELEASE, values("full"))
    assert len(cluster.names()) > 25
    releases.uninstall(RELEASE)
    assert cluster.names() == {"Secret/qlora-s3"}


def test_the_check_leaves_its_pod_for_its_log_until_the_next_one(cluster: Cluster, releases: Any) -> None:
    releases.install(str(CHART), RELEASE, values("minimal"))
    installed = cluster.names()
    assert "Pod/qlora-check" not in installed
    releases.test(RELEASE, timeout=60)
    assert cluster.logs_read == ["qlora-check"]
    assert cluster.names() == installed | {"Pod/qlora-check"}
    first = cluster.objects["Pod", "qlora-check"]["metadata"]["uid"]
    releases.test(RELEASE, timeout=60)
    assert cluster.objects["Pod", "qlora-check"]["metadata"]["uid"] != first


def test_a_registry_on_a_volume_outlives_the_release(cluster: Cluster, releases: Any) -> None:
    releases.install(str(CHART), RELEASE, values("trial"))
    releases.uninstall(RELEASE)
    assert cluster.names() == {"PersistentVolumeClaim/qlora-mlflow"}
    volume = cluster.objects["PersistentVolumeClaim", "qlora-mlflow"]["metadata"]["uid"]
    releases.install(str(CHART), RELEASE, values("trial"))  # takes it up again
    assert cluster.objects["PersistentVolumeClaim", "qlora-mlflow"]["metadata"]["uid"] == volume


def jobs(cluster: Cluster, component: str) -> set[str]:
    return {each for each in cluster.names() if each.startswith(f"Job/{RELEASE}-{component}-")}


def test_an_upgrade_that_would_leave_mlflow_without_its_login_is_refused(cluster: Cluster, releases: Any) -> None:
    cluster.put("Secret", "qlora-mlflow", admin("qlora-mlflow"))  # as 0.1 had it
    one = merged(values("trial"), {"mlflow.auth.adminSecret": "qlora-mlflow"})
    releases.install(str(CHART), RELEASE, one)
    message = rf"mlflow.auth.adminSecret: no secret qlora-mlflow-admin has {COOKIES}, .* see Upgrade"
    with pytest.raises(helm.HelmError, match=message):
        releases.upgrade(str(CHART), RELEASE, values("trial"))
    releases.upgrade(str(CHART), RELEASE, one)
    assert jobs(cluster, "mlflow-user") == set()
    cluster.put("Secret", "qlora-mlflow-admin", admin("qlora-mlflow-admin"))
    releases.upgrade(str(CHART), RELEASE, values("trial"))
    assert len(jobs(cluster, "mlflow-user")) == 1


def test_an_upgrade_keeps_volumes_and_uploads_what_changed(cluster: Cluster, releases: Any) -> None:
    before = merged(values("trial"), {"modelCache.enabled": True})
    cluster.put("Secret", "qlora-mlflow-admin", admin("qlora-mlflow-admin"))
    releases.install(str(CHART), RELEASE, before)
    volumes = {key: found["metadata"]["uid"] for key, found in cluster.objects.items() if "Volume" in key[0]}
    upload, user = jobs(cluster, "upload"), jobs(cluster, "mlflow-user")
    assert len(volumes) == 2

    releases.upgrade(str(CHART), RELEASE, merged(before, {"commonLabels": {"team": "a"}, "gc.enabled": True}))
    assert jobs(cluster, "upload") == upload
    again = jobs(cluster, "mlflow-user")
    assert len(again) == 1 and again != user  # a secret's content may have changed
    releases.upgrade(str(CHART), RELEASE, merged(before, {"image.tag": "0.2.0"}))
    changed = jobs(cluster, "upload")
    assert len(changed) == 1 and changed != upload
    assert volumes == {key: found["metadata"]["uid"] for key, found in cluster.objects.items() if "Volume" in key[0]}


def test_switching_a_part_off_removes_it(cluster: Cluster, releases: Any) -> None:
    releases.install(str(CHART), RELEASE, values("minimal"))
    few = cluster.names()
    releases.upgrade(str(CHART), RELEASE, merged(values("full"), {"modelCache.enabled": False}))
    releases.upgrade(str(CHART), RELEASE, values("minimal"))
    assert cluster.names() == few


def test_two_releases_in_a_namespace_are_refused_by_name(cluster: Cluster, releases: Any) -> None:
    releases.install(str(CHART), RELEASE, values("minimal"))
    with pytest.raises(helm.HelmError, match="qlora-pipelines"):
        releases.install(str(CHART), "another", values("minimal"))


def test_notes_name_the_secrets_that_are_not_there(cluster: Cluster, releases: Any) -> None:
    cluster.put("Secret", "qlora-s3", SECRET)
    said = releases.install(str(CHART), RELEASE, values("trial"))["notes"]
    assert "qlora-s3\n" in said
    for secret in ("qlora-mlflow", "qlora-mlflow-admin"):
        assert f"{secret} (not seen)\n    MLFLOW_TRACKING_USERNAME" in said
    assert f"helm test {RELEASE} -n {NAMESPACE}" in said
