"""Which nodes could take a run's pods: by an API server on loopback, as a pod of the run would ask it."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.plan_run import nodes, preflight
from tests.conftest import conversation, write_jsonl
from tests.tls import authority

WAITS = "the pods of training and evaluation will stay Pending until such a node joins (an autoscaler may add one)"
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def node(labels: dict[str, str], taints: list[dict[str, str]], **allocatable: str) -> dict[str, Any]:
    """One node, with as much of it as counts here."""
    names = {"gpu": "nvidia.com/gpu"}
    return {
        "metadata": {"labels": labels},
        "spec": {"taints": taints} if taints else {},
        "status": {"allocatable": {names.get(name, name): amount for name, amount in allocatable.items()}},
    }


NODES = [
    node({"pool": "cpu"}, [], cpu="7910m", memory="32000000Ki"),
    node({"pool": "l4"}, [GPU_TAINT], cpu="8", memory="65Gi", gpu="1"),
    node({"pool": "spot"}, [GPU_TAINT, {"key": "sku", "value": "spot", "effect": "NoExecute"}],
         cpu="32", memory="250Gi", gpu="4"),
    {"metadata": {}, "spec": {}, "status": {}},
]  # fmt: skip


@contextlib.contextmanager
def serving(folder: Path, status: int) -> Iterator[tuple[str, int]]:
    """The address of an API server with these nodes; it knows one token, and answers with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == "bearer a-token" and self.path.startswith("/api/v1/nodes?")
            body = json.dumps({"kind": "NodeList", "items": NODES} if status == 200 else {"kind": "Status"}).encode()
            self.send_response(status if known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ca, context = authority(folder)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield str(ca), server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def pod(folder: Path, status: int = 200) -> Iterator[None]:
    """What a pod of a run has, besides a server that answers: the service account's files, and the variables."""
    with serving(folder, status) as (ca, port), pytest.MonkeyPatch.context() as patch:
        (folder / "token").write_text("a-token")
        patch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
        patch.setattr(incluster_config, "SERVICE_CERT_FILENAME", ca)
        patch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        patch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        patch.setenv(nodes.POD_VARIABLE, "a-node")
        yield


def run(**changes: Any) -> PlacedRun:
    return PlacedRun.parse(base_model="org/base", dataset_uri="s3://bucket/data", model_name="tickets", **changes)


SPOT = [{"key": "sku", "value": "spot", "effect": "NoExecute"}]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ("ok", "1 of 4 could take the pods of training and evaluation")),
        ({"tolerations": SPOT}, ("ok", "2 of 4 could take the pods of training and evaluation")),
        ({"tolerations": [{"operator": "Exists"}], "gpu_count": 4, "options": {"train_qlora": {"processes": 4}}},
         ("ok", "1 of 4 could take the pods of training and evaluation")),
        ({"gpu_count": 0, "memory": "30Gi", "cpu": "7910m"},
         ("ok", "1 of 4 could take the pods of training and evaluation")),
        ({"gpu_count": 0, "memory": "30G", "cpu": ".5", "node_selector": {"pool": "cpu"}},
         ("ok", "1 of 4 could take the pods of training and evaluation")),
        ({"node_selector": {"pool": "h100", "zone": "a"}},
         ("warning", f"none of the cluster's nodes (4) has label pool=h100 zone=a: {WAITS}")),
        ({"node_selector": {"pool": "cpu"}},
         ("warning", f"none of the cluster's nodes (4) has label pool=cpu, nvidia.com/gpu 1: {WAITS}")),
        ({"accelerator": "nvidia.com/gpu.shared"},
         ("warning", f"none of the cluster's nodes (4) has nvidia.com/gpu.shared 1: {WAITS}")),
        ({"node_selector": {"pool": "l4"}, "memory": "65.5Gi"},
         ("warning", f"none of the cluster's nodes (4) has label pool=l4, nvidia.com/gpu 1, memory 65.5Gi: {WAITS}")),
        ({"gpu_count": 0, "cpu": "33"},
         ("warning", f"none of the cluster's nodes (4) has memory 32Gi, cpu 33: {WAITS}")),
        ({"cpu": 32},
         ("warning", "each node that has nvidia.com/gpu 1, memory 32Gi, cpu 32 has a taint without a toleration"
          f" (sku=spot:NoExecute): {WAITS}")),
        ({"cpu": 32, "tolerations": [SPOT[0] | {"value": "other"}, SPOT[0] | {"effect": "NoSchedule"}]},
         ("warning", "each node that has nvidia.com/gpu 1, memory 32Gi, cpu 32 has a taint without a toleration"
          f" (sku=spot:NoExecute): {WAITS}")),
    ],
)  # fmt: skip
def test_what_no_node_has_is_named(tmp_path: Path, changes: dict[str, Any], found: tuple[str, str]) -> None:
    with pod(tmp_path):
        assert nodes.check(run(**changes)) == found


def test_a_gpus_taint_is_not_tolerated_without_one() -> None:
    assert nodes.verdict(NODES[1:2], run(gpu_count=0)) == (
        "warning",
        f"each node that has memory 32Gi, cpu 4 has a taint without a toleration (nvidia.com/gpu=present:NoSchedule):"
        f" {WAITS}",
    )


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (403, "the run's service account may not list them; the chart's value runs.listNodes lets it"),
        (503, "the cluster's API says 503 Service Unavailable"),
    ],
)
def test_nodes_that_may_not_be_listed_are_not_checked(tmp_path: Path, status: int, why: str) -> None:
    with pod(tmp_path, status):
        assert nodes.check(run()) == ("ok", f"not checked: {why}")


def test_a_pod_without_a_token_and_an_api_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pod(tmp_path):
        (tmp_path / "token").unlink()
        assert nodes.check(run()) == ("ok", "not checked: Service token file does not exist.")
    with pod(tmp_path):
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
        level, text = nodes.check(run()) or ("", "")
        assert level == "ok" and text.startswith("not checked: ") and "Connection refused" in text
        monkeypatch.delenv("KUBERNETES_SERVICE_PORT")


def test_outside_a_runs_pod_nothing_is_said() -> None:
    assert nodes.check(run()) is None


def test_the_plan_warns_and_goes_on(place: Path, tiny_model: Path) -> None:
    rows = write_jsonl(place / "rows.jsonl", [conversation(f"question {n}", "cat") for n in range(120)])
    config = {"base_model": str(tiny_model), "dataset_uri": str(rows), "model_name": "tiny", "max_length": 64}
    with pod(place):
        checks = preflight.run(PlacedRun.parse(**config, node_selector={"pool": "h100"}), place / "files")
    [found] = [finding for finding in checks.findings if finding.subject == "nodes"]
    assert found.level == "warning" and not checks.fatal
