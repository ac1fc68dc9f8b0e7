"""What MLflow must be: there, new enough, and one that lets this user register."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client


@contextlib.contextmanager
def server(version: str) -> Iterator[str]:
    """An address that answers /version with these words, and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/version" else 404)
            self.end_headers()
            self.wfile.write(version.encode())

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://user:secret@127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("3.9.1", "is 3.9.1, which has known security holes: upgrade it to 3.10 or newer"),
        ("2.22.0", "is 2.22.0, which has known security holes: upgrade it to 3.10 or newer"),
        ("<html>", "does not say its version; is this an MLflow server?"),
    ],
)
def test_an_old_server_is_refused_and_no_password_is_shown(
    version: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(version) as uri:
        monkeypatch.setenv(mlflow_client.URI_VARIABLE, uri)
        with pytest.raises(InputError) as error:
            mlflow_client.connect()
    assert str(error.value) == f"MLflow at {mlflow_client.hide_password(uri)} {message}"
    assert "secret" not in str(error.value)


def test_a_server_that_is_new_enough_goes_on_to_its_first_question(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server("3.10.0") as uri:
        monkeypatch.setenv(mlflow_client.URI_VARIABLE, uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(InputError, match=r"does not answer: .*404"):
            mlflow_client.connect()


def test_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mlflow_client.URI_VARIABLE, raising=False)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is not set: give the address of an MLflow server or"):
        mlflow_client.connect()


def test_registering_is_tried_and_leaves_nothing(place: Path) -> None:
    client = mlflow_client.connect()
    mlflow_client.check_registering(client)
    assert list(client.search_registered_models()) == []


def test_why_mlflow_does_not_answer_is_said_in_few_words_and_without_passwords(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QLORA_STORE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri, reason in {
        "http://user:pass word@127.0.0.1:9": "MLflow at http://127.0.0.1:9 does not answer: Connection refused",
        "mysql://user:password@host/db": "MLflow at mysql://host/db needs a driver: No module named 'MySQLdb'",
    }.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(InputError) as error:
            mlflow_client.connect()
        assert str(error.value) == reason
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:pass word@host")
    assert mlflow_client.reason(ValueError("asking http://user:pass word@host failed")) == "asking http://host failed"
