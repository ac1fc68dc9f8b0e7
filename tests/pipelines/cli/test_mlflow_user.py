"""What `qlora mlflow-user` says where there is nothing to do, or no server that could do it.

The rest is tested against a server with logins, in tests/integration/test_mlflow_user.py.
"""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from tests.pipelines.cli.registered import qlora, refused

PASSWORD = "a-long-password-of-runs"


@pytest.fixture(autouse=True)
def _logins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "a-long-password-of-admin",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "QLORA_MLFLOW_USERNAME": "runs",
        "QLORA_MLFLOW_PASSWORD": PASSWORD,
    }.items():
        monkeypatch.setenv(name, value)


@contextlib.contextmanager
def without_logins() -> Iterator[str]:
    """The address of as much of an MLflow server without logins as this asks of."""
    answers = {"/health": "OK", "/version": "3.17.2", "/api/2.0/mlflow/registered-models/search": json.dumps({})}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            self.send_response(200 if answer else 404)
            self.end_headers()
            self.wfile.write((answer or "<!doctype html><title>404 Not Found</title>").encode())

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def test_one_login_for_both_goes_on_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_MLFLOW_USERNAME", "admin")
    result = qlora("mlflow-user")  # nothing listens: nothing is asked
    assert result.exit_code == 0
    said = "warning: nothing is done: runs log in as the administrator admin; give them a user of their own\n"
    assert result.output == said


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("QLORA_MLFLOW_USERNAME", "", "QLORA_MLFLOW_USERNAME is '': give a user's name, without colons"),
        ("QLORA_MLFLOW_USERNAME", "a:b", "QLORA_MLFLOW_USERNAME is 'a:b': give a user's name, without colons"),
        ("QLORA_MLFLOW_PASSWORD", "", "QLORA_MLFLOW_PASSWORD is not set: give a password of 12 characters or more"),
        ("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db",
         "MLFLOW_TRACKING_URI is 'sqlite:///mlflow.db': give the address of an MLflow server, http://..."),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, line: str) -> None:
    monkeypatch.setenv(variable, value)
    assert refused("mlflow-user") == line


def test_a_server_that_does_not_come_is_waited_for_and_then_named() -> None:
    result = qlora("mlflow-user", "--wait", "1")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "error: MLflow at http://127.0.0.1:9 does not answer: Connection refused"
    assert result.output.count("waiting for MLflow") == 1 and PASSWORD not in result.output


def test_a_server_without_logins_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf", reason="MLflow's logins need Flask-WTF")
    with without_logins() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        said = refused("mlflow-user")
    assert said == "this MLflow has no logins; it was not started with --app-name basic-auth"
