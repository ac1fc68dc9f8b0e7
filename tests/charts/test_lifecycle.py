"""Helm itself installs, tests, upgrades and uninstalls the chart, against an API that keeps what it is given."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.charts.api_server import Cluster, serving
from tests.charts.rendering import CHART, NAMESPACE, RELEASE, helm, merged, values

SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "qlora-s3"}}


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


def test_an_upgrade_keeps_volumes_and_uploads_what_changed(cluster: Cluster, releases: Any) -> None:
    before = merged(values("trial"), {"modelCache.enabled": True})
    releases.install(str(CHART), RELEASE, before)
    volumes = {key: found["metadata"]["uid"] for key, found in cluster.objects.items() if "Volume" in key[0]}
    upload = {each for each in cluster.names() if each.startswith("Job/")}
    assert len(volumes) == 2

    releases.upgrade(str(CHART), RELEASE, merged(before, {"commonLabels": {"team": "a"}, "gc.enabled": True}))
    assert {each for each in cluster.names() if each.startswith("Job/")} == upload
    releases.upgrade(str(CHART), RELEASE, merged(before, {"image.tag": "0.2.0"}))
    changed = {each for each in cluster.names() if each.startswith("Job/")}
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
    assert "qlora-mlflow (not seen)\n    MLFLOW_TRACKING_USERNAME" in said
    assert f"helm test {RELEASE} -n {NAMESPACE}" in said
