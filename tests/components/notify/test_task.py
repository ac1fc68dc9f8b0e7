"""notify against a real web server: what it posts, and that nothing of it can fail a run or tell the address."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.steps import NotifyConfig
from qlora_pipelines.components.notify import task, webhook
from qlora_pipelines.components.notify.task import Result
from tests.components.notify.conftest import RUN, Left
from tests.components.notify.hook import PATH, Hook, serving

SECRET = "verysecret"


def told(hook: Hook, monkeypatch: pytest.MonkeyPatch, state: str = "RUNNING", timeout: float = 10.0) -> Result:
    monkeypatch.setenv(webhook.URL_VARIABLE, hook.url)
    config = NotifyConfig(timeout_seconds=timeout, tries=3)
    return task.run(config, state=state, model_name="tickets", run_name="tickets-1")


@pytest.fixture
def registered(left: Left) -> None:
    left("register_model", model_version="3", model_uri="models:/tickets@champion", outcome="champion",
         figures={"loss": "0.5"}, page="https://mlflow/#/models/tickets/versions/3")  # fmt: skip


@pytest.mark.usefixtures("registered")
def test_a_registered_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example.org/")
    with serving(Hook()) as hook:
        assert told(hook, monkeypatch) == Result("registered", True)
    page, run = "https://mlflow/#/models/tickets/versions/3", f"https://kubeflow.example.org/#/runs/details/{RUN}"
    [message] = hook.messages
    assert message == {
        "run_id": RUN, "run_name": "tickets-1", "model": "tickets", "outcome": "registered",
        "reason": "version 3 is registered, champion", "step": "", "version": "3",
        "model_uri": "models:/tickets@champion", "figures": {"loss": 0.5}, "links": {"model": page, "run": run},
        "text": "tickets: registered\nversion 3 is registered, champion\nloss 0.5\n"
        f"run tickets-1 ({RUN})\n{page}\n{run}",
    }  # fmt: skip
    assert hook.requests == [f"POST {PATH}"]


def test_a_rejected_model_and_a_failed_step_are_told(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hook()) as hook:
        left("evaluate_model", passed=False, reason="Failed: the tuned loss is 2.", loss=2.0)
        assert told(hook, monkeypatch).outcome == "rejected"
        left("train_qlora", "the loss is NaN at step 3")
        assert told(hook, monkeypatch).outcome == "failed"
    rejected, failed = hook.messages
    assert (rejected["outcome"], rejected["reason"]) == ("rejected", "Failed: the tuned loss is 2.")
    assert rejected["text"].startswith("tickets: rejected by the gate\nFailed: the tuned loss is 2.\nloss 2\n")
    assert (failed["step"], failed["reason"]) == ("train_qlora", "the loss is NaN at step 3")
    assert failed["text"].startswith("tickets: failed in train_qlora\nthe loss is NaN at step 3\n")


def test_slacks_form_is_a_text(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    left("plan_run", "dataset_uri <a&b>: there is no such file")
    monkeypatch.setenv(webhook.FORMAT_VARIABLE, "slack")
    with serving(Hook()) as hook:
        told(hook, monkeypatch)
    [message] = hook.messages
    assert message.keys() == {"text"}
    assert message["text"].startswith(
        "tickets: failed in plan_run\ndataset_uri &lt;a&amp;b&gt;: there is no such file\nrun tickets-1"
    )


@pytest.mark.parametrize(
    ("url", "given", "form"),
    [
        ("https://hooks.slack.com/services/a", "", "slack"), ("https://hooks.slack.com/services/a", "json", "json"),
        ("https://chat.example.org/hooks/a\n", " Slack\n", "slack"), ("http://a:8080/hooks.slack.com/", "", "json"),
    ],
)  # fmt: skip
def test_the_form_is_that_of_the_host_unless_given(
    url: str, given: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(webhook.URL_VARIABLE, url)
    monkeypatch.setenv(webhook.FORMAT_VARIABLE, given)
    assert webhook.from_environment() == webhook.Webhook(url.strip(), form)


def test_without_a_webhook_it_ends_at_once(
    left: Left, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left("train_qlora", "out of memory")
    monkeypatch.setenv("QLORA_STORE", "s3://nowhere/at-all")  # which it does not look at
    for url in (None, "", " \n"):
        if url is not None:
            monkeypatch.setenv(webhook.URL_VARIABLE, url)
        assert task.run(NotifyConfig.parse(), state="FAILED", model_name="m") == Result("", False)
    assert capsys.readouterr().out.count("nobody is told: QLORA_WEBHOOK_URL is not set") == 3


@pytest.mark.usefixtures("registered")
def test_a_store_that_is_away_makes_a_shorter_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for store in (str(tmp_path / "nothing"), ""):
        monkeypatch.setenv("QLORA_STORE", store)
        with serving(Hook()) as hook:
            assert told(hook, monkeypatch, "FAILED") == Result("failed", True)
            assert told(hook, monkeypatch, "COMPLETE") == Result("unknown", True)
        assert hook.messages[0]["reason"].startswith("no step said why")
        assert hook.messages[1]["reason"].startswith("the store does not say how the steps ended")


@pytest.mark.usefixtures("registered")
def test_a_hook_that_is_back_after_a_moment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hook(500, 503, 200)) as hook:
        assert told(hook, monkeypatch) == Result("registered", True)
    assert len(hook.requests) == 3 and len(hook.messages) == 1


BAD = "QLORA_WEBHOOK_URL is no address that begins with http:// or https://"


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("hook", "requests", "line"),
    [
        (Hook(500), 3, "it answers with HTTP status 500"),
        (Hook(404), 1, "it answers with HTTP status 404"),
        (Hook(429), 3, "it answers with HTTP status 429"),
        (Hook(302, headers={"Location": f"/moved/{SECRET}"}), 1, "it answers with a redirect (302), which is not"),
        (Hook(hang=True), 3, "no answer within 1 s"),
    ],
    ids=["500", "404", "429", "redirect", "hangs"],
)
def test_a_hook_that_fails_is_a_line_without_its_address(
    hook: Hook, requests: int, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(hook):
        result = told(hook, monkeypatch, timeout=1.0 if hook.hang else 10.0)
    assert result == Result("registered", False) and hook.messages == []
    assert hook.hang or len(hook.requests) == requests
    said = capfd.readouterr()
    assert f"warning: the webhook was not told: {line}" in said.out
    assert SECRET not in said.out + said.err and "127.0.0.1" not in said.out + said.err


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("url", "line"),
    [
        (f"http://127.0.0.1:9/{SECRET}", "it cannot be reached"),
        (f"http://no-such-host.invalid/{SECRET}", "it cannot be reached"),
        (f"ftp://example.org/{SECRET}", BAD), (f"file:///etc/{SECRET}", BAD), (SECRET, BAD),
        (f"http://[::{SECRET}", BAD), (f"http://host:{SECRET}/", BAD), (f"https:///{SECRET}", BAD),
        (f"http://a b/{SECRET}", BAD), (f"http://ab\x00/{SECRET}", BAD),
        (f"http://{'a' * 70}.{SECRET}.example/", "QLORA_WEBHOOK_URL cannot be used"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_a_line_without_it(
    url: str, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hook = Hook()
    hook.url = url if "\x00" not in url else url.replace("\x00", "\x01")  # the environment takes no zero byte
    assert not told(hook, monkeypatch).sent
    said = capfd.readouterr()
    assert f"the webhook was not told: {line}" in said.out and SECRET not in said.out + said.err


@pytest.mark.usefixtures("registered")
def test_no_secure_connection_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Hook()) as hook:
        hook.url = hook.url.replace("http:", "https:")  # a server that speaks no TLS
        assert not told(hook, monkeypatch).sent
    assert "not told: no secure connection" in capsys.readouterr().out


@pytest.mark.usefixtures("registered")
def test_a_format_that_is_not_known_and_a_fault_of_its_own_fail_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Hook()) as hook:
        monkeypatch.setenv(webhook.FORMAT_VARIABLE, "teams")
        assert told(hook, monkeypatch) == Result("", False)
        monkeypatch.delenv(webhook.FORMAT_VARIABLE)
        monkeypatch.setattr("qlora_pipelines.components.notify.message.make", lambda *_: 1 / 0)
        assert told(hook, monkeypatch) == Result("registered", False)
    said = capsys.readouterr().out
    assert "QLORA_WEBHOOK_FORMAT is neither json nor slack" in said and "not told: ZeroDivisionError" in said


def test_the_command_tells_it_too(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves an outcome itself, which is not one of the run's steps."""
    left("plan_run", training_key="t", merge_key="m")
    left("evaluate_model", passed=False, reason="Failed: the tuned loss is 2.")
    command = [Path(sys.executable).parent / "qlora", "step", "notify", "--model-name=tickets", "--state=Succeeded"]
    with serving(Hook()) as hook:
        monkeypatch.setenv(webhook.URL_VARIABLE, hook.url)
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"outcome": "rejected", "sent": True}
    assert len(hook.messages) == 1 and SECRET not in done.stdout + done.stderr


def test_a_port_that_nobody_listens_on_is_really_closed() -> None:
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", 9), timeout=1):
        pass
