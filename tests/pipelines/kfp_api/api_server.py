"""Kubeflow Pipelines' v2beta1 API on loopback: kfp_server_api's own models on the wire, and real servers' faults."""

import contextlib
import email
import http.server
import json
import re
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import kfp_server_api as api
import yaml

from tests.pipelines.kfp_api import full_view
from tests.pipelines.kfp_api.state import Answer, Kfp, now

WIRE = api.ApiClient()


def read(body: bytes, kind: str) -> Any:
    """A model out of a request's body, by the client's own deserialiser."""
    return WIRE.deserialize(type("Response", (), {"data": body}), kind)


def passes(query: dict[str, str], item: Any) -> bool:
    """Whether a list's filter lets an item through."""
    predicates = json.loads(query.get("filter") or "{}").get("predicates", [])
    for predicate in predicates:
        value = getattr(item, predicate["key"])
        wanted = predicate["string_value"]
        if not (wanted in value if predicate["operation"] == "IS_SUBSTRING" else wanted == value):
            return False
    return True


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request after the other of a connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    kfp: Kfp

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        request = f"{self.command} {urllib.parse.unquote(path)}"
        with self.kfp.lock:
            self.kfp.requests.append(request)
            fault = next((f for f in self.kfp.faults if f.times and re.search(f.match, request)), None)
            if fault:
                fault.times -= 1
        if fault:
            time.sleep(fault.slow)
            if fault.done:
                self.route(request)
            if fault.page:
                self.send(fault.status, fault.page.encode(), "text/html")
            elif fault.status:
                self.refuse(fault.status, fault.message)
            elif not fault.slow:
                self.close_connection = True
                self.connection.close()
            if not fault.slow or fault.done:
                return
        try:
            self.sign_in()
            answer = self.route(request)
            if isinstance(answer, str):
                self.send(200, answer.encode(), "text/plain")
            else:
                self.send(200, json.dumps(WIRE.sanitize_for_serialization(answer)).encode())
        except Answer as refused:
            self.refuse(refused.status, refused.message)

    def refuse(self, status: int, message: str) -> None:
        body = {"error": message, "code": 13, "message": message, "details": []}
        self.send(status, json.dumps(body).encode())

    def send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        with contextlib.suppress(OSError):  # the client may have gone
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Set-Cookie", "session=a-secret-cookie-of-the-server")
            if 300 <= status < 400:
                self.send_header("Location", "/dex/auth")
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

    def sign_in(self) -> None:
        if self.kfp.token and self.headers.get("Authorization") != f"Bearer {self.kfp.token}":
            raise Answer(401, "Request header error: there is no user identity header.")
        if self.kfp.cookie and self.headers.get("Cookie") != self.kfp.cookie:
            raise Answer(302, "Found")

    def route(self, request: str) -> Any:
        for match, function in ROUTES:
            if found := re.fullmatch(match, request):
                with self.kfp.lock:
                    return function(self, *found.groups())
        raise Answer(404, "Not Found")

    def health(self) -> Any:
        return api.V2beta1GetHealthzResponse(multi_user=self.kfp.multi_user)

    def pipeline_by_name(self, name: str) -> Any:
        for pipeline in self.kfp.pipelines.values():
            if pipeline.display_name == name and (pipeline.namespace or "") == self.query.get("namespace", ""):
                return pipeline
        raise Answer(404, f"Pipeline {name} not found")

    def create_pipeline(self) -> Any:
        pipeline = read(self.body, "V2beta1Pipeline")
        if any(known.display_name == pipeline.display_name for known in self.kfp.pipelines.values()):
            raise Answer(409, "Already exist error: The name is used")
        pipeline.pipeline_id = str(uuid.uuid4())
        self.kfp.pipelines[pipeline.pipeline_id] = pipeline
        return pipeline

    def list_versions(self, pipeline_id: str) -> Any:
        found = [v for v in self.kfp.versions.values() if v.pipeline_id == pipeline_id and passes(self.query, v)]
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=found, total_size=len(found))

    def upload_version(self) -> Any:
        message = email.message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + self.body)
        (part,) = message.get_payload()
        spec = next(yaml.load_all(part.get_payload(decode=True), yaml.CSafeLoader))
        if self.query["pipelineid"] not in self.kfp.pipelines:
            raise Answer(400, "Failed to create a pipeline version")
        if spec["sdkVersion"] > self.kfp.newest_sdk:
            raise Answer(400, "Failed to create a pipeline version: unknown field in the platform spec")
        if any(v.display_name == self.query["name"] for v in self.kfp.versions.values()):
            raise Answer(409, "Failed to create a pipeline version")
        version = api.V2beta1PipelineVersion(
            pipeline_id=self.query["pipelineid"],
            pipeline_version_id=str(uuid.uuid4()),
            display_name=self.query["name"],
            pipeline_spec=spec,
            created_at=now(),
        )
        self.kfp.versions[version.pipeline_version_id] = version
        return version

    def list_experiments(self) -> Any:
        found = [item for item in self.kfp.experiments.values() if passes(self.query, item)]
        return api.V2beta1ListExperimentsResponse(experiments=found, total_size=len(found))

    def create_experiment(self) -> Any:
        experiment = read(self.body, "V2beta1Experiment")
        experiment.experiment_id = str(uuid.uuid4())
        self.kfp.experiments[experiment.experiment_id] = experiment
        return experiment

    def list_runs(self) -> Any:
        found = sorted(
            (run for run in self.kfp.runs.values() if passes(self.query, run)), key=lambda r: (r.created_at, r.run_id)
        )
        start, size = int(self.query.get("page_token") or 0), int(self.query.get("page_size") or 10)
        more = str(start + size) if start + size < len(found) else ""
        page = found[start : start + size]
        return api.V2beta1ListRunsResponse(runs=page, total_size=len(found), next_page_token=more)

    def create_run(self) -> Any:
        given = json.loads(self.body)
        if not self.kfp.knows_plugins and "plugins_input" in given:
            raise Answer(400, 'unknown field "plugins_input"')
        run = read(self.body, "V2beta1Run")
        if run.pipeline_version_reference.pipeline_version_id not in self.kfp.versions:
            raise Answer(404, "ResourceNotFoundError: PipelineVersion not found")
        if run.experiment_id not in self.kfp.experiments:
            raise Answer(404, "ResourceNotFoundError: Experiment not found")
        run.run_id, run.state, run.created_at = str(uuid.uuid4()), "PENDING", now()
        run.finished_at = datetime.fromtimestamp(0, UTC)
        self.kfp.runs[run.run_id] = run
        self.kfp.created(run)
        return run

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.kfp.runs:
            raise Answer(404, f"ResourceNotFoundError: Run {run_id} not found")
        run = self.kfp.runs[run_id]
        if self.kfp.life:
            change = self.kfp.life[0] if len(self.kfp.life) == 1 else self.kfp.life.pop(0)
            if change.get("vanish"):
                del self.kfp.runs[run_id]
                raise Answer(404, f"ResourceNotFoundError: Run {run_id} not found")
            for name, value in change.items():
                setattr(run, name, value)
        return run if self.kfp.metadata else full_view.run(run, self.query.get("view", ""))

    def get_run_v1(self, run_id: str) -> Any:
        if not self.kfp.workflows:
            raise Answer(404, "Not Found")
        manifest = json.dumps({"status": {"nodes": self.kfp.workflows}})
        return {"run": {"id": run_id}, "pipeline_runtime": {"workflow_manifest": manifest}}

    def terminate(self, run_id: str) -> Any:
        if run_id not in self.kfp.runs:
            raise Answer(404, f"ResourceNotFoundError: Run {run_id} not found")
        self.kfp.terminated.append(run_id)
        self.kfp.runs[run_id].state = "CANCELING"
        return {}

    def log(self, run_id: str, node: str) -> Any:
        if node not in self.kfp.logs:
            raise Answer(500, "pod not found")
        return self.kfp.logs[node]


V2, RUNS = "/apis/v2beta1", "/apis/v2beta1/runs"
ROUTES: list[tuple[str, Callable[..., Any]]] = [
    (f"GET {V2}/healthz", Handler.health),
    (f"GET {V2}/pipelines/names/([^/]+)", Handler.pipeline_by_name),
    (f"POST {V2}/pipelines", Handler.create_pipeline),
    (f"GET {V2}/pipelines/([^/]+)/versions", Handler.list_versions),
    (f"POST {V2}/pipelines/upload_version", Handler.upload_version),
    (f"GET {V2}/experiments", Handler.list_experiments),
    (f"POST {V2}/experiments", Handler.create_experiment),
    (f"GET {RUNS}", Handler.list_runs),
    (f"POST {RUNS}", Handler.create_run),
    (f"GET {RUNS}/([^/:]+)", Handler.get_run),
    (f"POST {RUNS}/([^/:]+):terminate", Handler.terminate),
    ("GET /apis/v1beta1/runs/([^/]+)", Handler.get_run_v1),
    ("GET /apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", Handler.log),
]


@contextlib.contextmanager
def serve(kfp: Kfp, tls: ssl.SSLContext | None = None) -> Iterator[Kfp]:
    """Serves for as long as the context lasts."""
    handler = type("Bound", (Handler,), {"kfp": kfp})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    kfp.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield kfp
    finally:
        server.shutdown()
        server.server_close()
