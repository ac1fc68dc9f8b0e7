"""As much of a Kubernetes API as Helm needs to install, upgrade, test and uninstall: it keeps what it is given.

It checks nothing and runs nothing; a pod of a test is at its end at once. What Kubernetes itself would say of the
objects is tested with its schemas.
"""

import contextlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

GROUPS = {
    "v1": ["ConfigMap", "Secret", "Service", "ServiceAccount", "PersistentVolumeClaim", "Pod", "ResourceQuota"],
    "apps/v1": ["Deployment"],
    "batch/v1": ["Job", "CronJob"],
    "networking.k8s.io/v1": ["NetworkPolicy", "Ingress"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"],
    "scheduling.k8s.io/v1": ["PriorityClass"],
    "argoproj.io/v1alpha1": ["Sensor"],
}
CLUSTER_WIDE = {"PriorityClass", "ClusterRole", "ClusterRoleBinding"}
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)/(?:namespaces/[^/]+/)?(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)


def plural(kind: str) -> str:
    name = kind.lower()
    return re.sub("y$", "ie", name) + ("es" if name.endswith("s") else "s")


KINDS = {plural(kind): (version, kind) for version, kinds in GROUPS.items() for kind in kinds}


class Cluster:
    """The objects of one namespace, by kind and name, and how often each was written."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.logs_read: list[str] = []
        self.uid = 0

    def names(self) -> set[str]:
        """`Kind/name` of all that is there, without Helm's own record of releases."""
        return {f"{kind}/{name}" for kind, name in self.objects if not name.startswith("sh.helm.release")}

    def listed(self, kind: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The objects of a kind that a query selects."""
        there = sorted(self.objects.items())
        return [found for (each, _), found in there if each == kind and _selected(found, query)]

    def put(self, kind: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Creates or changes an object; its uid stays."""
        self.uid += 1
        before = self.objects.get(
            (kind, name), {"metadata": {"uid": str(self.uid), "creationTimestamp": "2026-01-01T00:00:00Z"}}
        )
        found: dict[str, Any] = _over(before, given)
        found["metadata"] |= {"resourceVersion": str(self.uid)}
        if kind not in CLUSTER_WIDE:
            found["metadata"]["namespace"] = self.namespace
        if kind == "Pod":
            found["status"] = {"phase": "Succeeded"}
        self.objects[kind, name] = found
        return found


def _selected(found: dict[str, Any], query: dict[str, list[str]]) -> bool:
    labels, name = found["metadata"].get("labels", {}), found["metadata"]["name"]
    wanted = [each.split("=") for each in ",".join(query.get("labelSelector", [])).split(",") if "=" in each]
    fields = [each.split("=") for each in ",".join(query.get("fieldSelector", [])).split(",") if "=" in each]
    return all(labels.get(key) == value for key, value in wanted) and all(
        name == value for key, value in fields if key == "metadata.name"
    )


def _over(before: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A merge patch, as RFC 7386 has it."""
    result = dict(before)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _over(result[key], value)
        else:
            result[key] = value
    return result


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> dict[str, Any]:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return dict(yaml.safe_load(text) or {})

    def log(self, pod: str) -> None:
        if ("Pod", pod) not in self.cluster.objects:
            return self.missing()
        self.cluster.logs_read.append(pod)
        self.answer({"log": "of the pod"})

    def missing(self) -> None:
        self.answer({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}, 404)

    def handle_one(self) -> None:
        given = self.body()
        url = urllib.parse.urlsplit(self.path)
        path, query = url.path.rstrip("/"), urllib.parse.parse_qs(url.query)
        if found := _discovery(path):
            return self.answer(found)
        if path.endswith("/log"):
            return self.log(path.split("/")[-2])
        match = PATH.fullmatch(path)
        if not match or match["plural"] not in KINDS:
            return self.missing()
        version, kind = KINDS[match["plural"]]
        name, objects = match["name"] or "", self.cluster.objects
        if self.command == "POST":
            return self.answer(self.cluster.put(kind, given["metadata"]["name"], given), 201)
        if not name:
            if "watch" in query:
                return self.watch(version, kind, query)
            items = self.cluster.listed(kind, query)
            listed = {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}}
            return self.answer(listed | {"items": items})
        if self.command == "PATCH":
            if (kind, name) not in objects and "apply" not in self.headers["Content-Type"]:
                return self.missing()
            return self.answer(self.cluster.put(kind, name, given))
        if (kind, name) not in objects:
            return self.missing()
        if self.command == "PUT":
            return self.answer(self.cluster.put(kind, name, given))
        if self.command == "DELETE":
            return self.answer(objects.pop((kind, name)))
        return self.answer(objects[kind, name])

    def watch(self, version: str, kind: str, query: dict[str, list[str]]) -> None:
        """Tells what is there, that this was all, and then what goes and comes."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        all_told = {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}
        events = [{"type": "BOOKMARK", "object": {"apiVersion": version, "kind": kind, "metadata": all_told}}]
        known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError):
            for _ in range(300):
                now = {found["metadata"]["name"]: found for found in self.cluster.listed(kind, query)}
                gone = [{"type": "DELETED", "object": known[name]} for name in known.keys() - now.keys()]
                come = [{"type": "ADDED", "object": now[name]} for name in now.keys() - known.keys()]
                for event in [*gone, *come, *events]:
                    self.wfile.write(json.dumps(event).encode() + b"\n")
                self.wfile.flush()
                known, events = now, []
                time.sleep(0.1)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one


def _discovery(path: str) -> dict[str, Any] | None:
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/openapi/v3":
        return {
            "paths": {_base(version)[1:]: {"serverRelativeURL": f"/openapi/v3{_base(version)}"} for version in GROUPS}
        }
    for version, kinds in GROUPS.items():
        if path == f"/openapi/v3{_base(version)}":
            return _openapi(version, kinds)
    if path == "/apis":
        groups = [version.split("/") for version in GROUPS if "/" in version]
        listed = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [
            {"name": group, "versions": [each], "preferredVersion": each}
            for (group, _), each in zip(groups, listed, strict=True)
        ]}  # fmt: skip
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version in GROUPS:
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": [
            {"name": plural(kind), "singularName": kind.lower(), "kind": kind, "verbs": verbs,
             "namespaced": kind not in CLUSTER_WIDE}
            for kind in GROUPS[version]
        ]}  # fmt: skip
    return None


def _base(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _openapi(version: str, kinds: list[str]) -> dict[str, Any]:
    """Says no more than that the server validates fields itself, so that Helm does not."""
    group, _, short = version.rpartition("/")
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": {
        f"{_base(version)}/{plural(kind)}/{{name}}": {"patch": {
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "x-kubernetes-group-version-kind": {"group": group, "version": short, "kind": kind},
            "responses": {"200": {"description": "OK"}},
        }}
        for kind in kinds
    }}  # fmt: skip


@contextlib.contextmanager
def serving(cluster: Cluster) -> Iterator[str]:
    """Serves a cluster on loopback; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
