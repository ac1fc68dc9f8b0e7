"""Credentials from the environment and files; `qlora` checks each time that none is printed."""

from pathlib import Path

import pytest

from qlora_pipelines.pipelines.kfp_api import auth, client
from tests.pipelines.kfp_api.api_server import serve
from tests.pipelines.kfp_api.commands import refused, submit
from tests.pipelines.kfp_api.state import Fault, Kfp
from tests.tls import authority


def test_a_token(kfp: Kfp, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kfp.token = "a-secret-token"
    assert "does not know this login (401): set QLORA_KFP_TOKEN" in refused("submit", "--config", run_yaml)
    assert kfp.count("healthz") == 2  # a login that never worked is tried only once more
    monkeypatch.setenv("QLORA_KFP_TOKEN", "a-secret-token")
    assert submit(run_yaml)["exit_code"] == 0


def test_a_session_cookie(kfp: Kfp, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kfp.cookie = "authservice_session=a-secret-cookie"
    assert "leads to a login page (302)" in refused("submit", "--config", run_yaml)
    monkeypatch.setenv("QLORA_KFP_COOKIE", "authservice_session=a-secret-cookie")
    assert submit(run_yaml)["exit_code"] == 0


def test_a_login_page_that_answers_200(kfp: Kfp, run_yaml: Path) -> None:
    kfp.faults = [Fault("healthz", 200, page="<html>Log in</html>")]
    assert "answers with a page (text/html)" in refused("submit", "--config", run_yaml)


def test_a_login_without_the_right(kfp: Kfp, run_yaml: Path) -> None:
    kfp.faults = [Fault("POST .*/runs$", 403, message="User is not authorized")]
    assert "this login may not do that" in refused("submit", "--config", run_yaml, "--namespace", "team")


def test_several_users_need_a_namespace(
    kfp: Kfp, run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp.multi_user = True
    assert refused("submit", "--config", run_yaml).endswith("serves several users: give --namespace")
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setattr(auth, "NAMESPACE_PATH", str(tmp_path / "namespace"))
    assert submit(run_yaml)["exit_code"] == 0
    assert next(iter(kfp.pipelines.values())).namespace == "team"


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("", "no server is given: use --endpoint"), ("ftp://host", "is not an address"),
        ("https://me:a-secret-token@host", "the endpoint holds a password"), ("https://", "is not an address"),
    ],
)  # fmt: skip
def test_an_endpoint_that_is_not_an_address(
    run_yaml: Path, endpoint: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    assert message in refused("submit", "--config", run_yaml, "--endpoint", endpoint)


def test_files_that_are_not_there(kfp: Kfp, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CA certificate none.pem: no such file" in refused("submit", "--config", run_yaml, "--ca-cert", "none.pem")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", "/none/token")
    assert "KF_PIPELINES_SA_TOKEN_PATH names /none/token: No such file" in refused("submit", "--config", run_yaml)
    monkeypatch.setenv("QLORA_KFP_TOKEN", "a-secret-token\nand more")
    assert "has characters that no token" in refused("submit", "--config", run_yaml)


def test_nothing_listens(run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.Server.__init__, "__defaults__", ("", "", "", 0.05))
    message = refused("submit", "--config", run_yaml, "--endpoint", "http://127.0.0.1:9")
    assert message.startswith("http://127.0.0.1:9 does not answer: ") and "0x" not in message


def test_a_private_certificate_authority(run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, context = authority(tmp_path)
    with serve(Kfp(), context) as kfp:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.url)
        message = refused("submit", "--config", run_yaml)
        assert "no secure connection: " in message and message.endswith("with --ca-cert")
        assert "CERTIFICATE_VERIFY_FAILED" in message and not kfp.requests
        assert submit(run_yaml, "--ca-cert", str(path))["exit_code"] == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert submit(run_yaml)["exit_code"] == 0
