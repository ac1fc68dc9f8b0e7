"""Kubeflow Pipelines' API with answers one can rely on: what passes by itself is asked again, all else is one line."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import kfp_server_api
import urllib3

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.kfp_api import auth

TIMEOUT = (10, 30)
"""Seconds to connect, and to wait for an answer."""
PASSING = {401, 408, 425, 429, 500, 502, 503, 504}
"""Answers that may be another a moment later; 401: a token was renewed, or the proxy before the server restarted."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between tries; the last one repeats."""


class NotThere(InputError):
    """The server does not have it."""


class Refused(InputError):
    """The server does not take what was sent (400)."""


class Conflict(InputError):
    """Somebody else made it at the same moment (409)."""


class NoAnswer(InputError):
    """The server did not answer in time, so whether it did what was asked is not known."""


class Server:
    """One Kubeflow Pipelines server and a namespace on it."""

    def __init__(self, endpoint: str = "", namespace: str = "", ca_cert: str = "", patience: float = 60.0) -> None:
        """Signs in and asks whether this is a server that speaks v2beta1.

        Args:
            endpoint: its address; empty: the environment's.
            namespace: of the runs; empty: this pod's, where the server has several users.
            ca_cert: PEM file of the authority that signed its certificate.
            patience: seconds without an answer after which it is given up.

        Raises:
            InputError: it does not answer, does not let one in, or is none.
        """
        self.address = auth.endpoint(endpoint)
        self.patience = patience
        self._api = auth.client(self.address, ca_cert)
        self._known = False
        self.runs = kfp_server_api.RunServiceApi(self._api)
        self.pipelines = kfp_server_api.PipelineServiceApi(self._api)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(self._api)
        self.experiments = kfp_server_api.ExperimentServiceApi(self._api)
        health = self._health()
        self._known = True
        self.namespace = namespace or (auth.namespace_here() if health.multi_user else "")
        if health.multi_user and not self.namespace:
            raise InputError(f"{self.address} serves several users: give --namespace")

    def _health(self) -> Any:
        try:
            return self.ask(kfp_server_api.HealthzServiceApi(self._api).healthz_service_get_healthz)
        except NotThere:
            raise InputError(
                f"{self.address} has no v2beta1 API: give the address of Kubeflow Pipelines 2.17 or newer (behind"
                " Kubeflow's dashboard it ends in /pipeline)"
            ) from None

    def ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Asks what may be asked twice; goes on until `patience` is over.

        Raises:
            InputError: the server's answer in one line.
        """
        started, tries = time.monotonic(), 0
        while True:
            try:
                return self.once(call, *arguments, **options)
            except _Passing as passing:
                tries += 1
                pause = PAUSES[min(tries, len(PAUSES)) - 1]
                # A login that never worked is not going to: one more try, for a token renewed this moment.
                if (passing.status == 401 and not self._known and tries > 1) or (
                    time.monotonic() + pause > started + self.patience
                ):
                    raise NoAnswer(passing.line) from None
                time.sleep(pause)

    def once(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Asks once.

        Raises:
            NoAnswer: what was asked may have been done or not.
            InputError: the server's answer in one line.
        """
        try:
            answer = call(*arguments, _request_timeout=TIMEOUT, **options)
        except kfp_server_api.ApiException as error:
            raise self._refusal(error) from None
        except urllib3.exceptions.HTTPError as error:
            raise _Passing(0, f"{self.address} does not answer: {_plain(error)}") from None
        except AttributeError as error:  # kfp_server_api decodes the body of an answer that never came
            reason = str(getattr(error.__context__, "reason", "")).partition("\n")[2]
            raise InputError(
                f"{self.address}: no secure connection: {reason[:200]}; name the authority's certificate with --ca-cert"
            ) from None
        kind = self._api.last_response.getheader("content-type") or ""
        if answer is not None and "json" not in kind:
            raise InputError(
                f"{self.address} answers with a page ({kind or 'no type'}) and not as an API: sign in with"
                f" {auth.TOKEN_VARIABLE} or {auth.COOKIE_VARIABLE}, and check the endpoint's path"
            )
        return answer

    def _refusal(self, error: kfp_server_api.ApiException) -> InputError:
        # The error itself is never shown: it quotes headers, and those may set cookies.
        said = _message(error.body)
        line = f"{self.address}: {said or error.reason or 'no reason'} (HTTP status {error.status})"
        if error.status == 401:
            line = f"{self.address} does not know this login (401): " + _how_to_sign_in()
        if error.status in PASSING:
            return _Passing(error.status, line)
        if 300 <= error.status < 400:
            return InputError(f"{self.address} leads to a login page ({error.status}): " + _how_to_sign_in())
        if error.status == 403:
            return InputError(f"{line}; this login may not do that in namespace {self.namespace_or_default()}")
        kinds: dict[int, type[InputError]] = {400: Refused, 404: NotThere, 409: Conflict}
        return kinds.get(error.status, InputError)(line)

    def namespace_or_default(self) -> str:
        """The namespace as people call it."""
        return getattr(self, "namespace", "") or "of the server"

    def log(self, run_id: str, pod: str) -> str:
        """What a run's pod wrote, or '' where the server does not give it."""
        path = f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log"
        try:
            answer = self._api.call_api(
                path, "GET", auth_settings=["Bearer"], response_type="str", _preload_content=False,
                _return_http_data_only=True, _request_timeout=TIMEOUT,
            )  # fmt: skip
            return str(answer.data.decode("utf-8", "replace")) if 200 <= answer.status < 300 else ""
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError, AttributeError):
            return ""

    def url(self, run_id: str) -> str:
        """The run's page in the UI."""
        return f"{os.environ.get(auth.UI_VARIABLE, self.address).rstrip('/')}/#/runs/details/{run_id}"


class _Passing(NoAnswer):
    """An answer, or none, that may be another a moment later."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


def equals(key: str, value: str, operation: str = "EQUALS") -> str:
    """A filter of the API's lists."""
    return json.dumps({"predicates": [{"operation": operation, "key": key, "string_value": value}]})


def _message(body: Any) -> str:
    try:
        said = json.loads(body or "")
    except (TypeError, ValueError):
        return ""
    text = said.get("message") or said.get("error_message") or said.get("error") if isinstance(said, dict) else ""
    return " ".join(str(text or "").split())[:300]


def _plain(error: Exception) -> str:
    text = str(getattr(error, "reason", None) or error)
    # "<urllib3.connection.HTTPSConnection object at 0x...>: Failed to ...", "HTTPConnection(host=...): Read timed out."
    return " ".join(text.rsplit(">: ", 1)[-1].split("): ", 1)[-1].split())[:200]


def _how_to_sign_in() -> str:
    return (
        f"set {auth.TOKEN_VARIABLE}, a token's file in {auth.TOKEN_PATH_VARIABLE}, or the session cookie in"
        f" {auth.COOKIE_VARIABLE}; or renew it"
    )
