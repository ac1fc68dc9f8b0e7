"""Kubeflow Pipelines' API with reliable answers: what may pass is retried, every other error is one line."""

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
RETRIED = {401, 408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may pass; 401: a token was renewed, or the proxy restarted before the server did."""
BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between tries; the last one repeats."""
SIGN_IN = (
    f"set {auth.TOKEN_VARIABLE}, a token's file in {auth.TOKEN_PATH_VARIABLE}, or the session cookie in"
    f" {auth.COOKIE_VARIABLE}; or renew it"
)


class BadRequest(InputError):
    """The server does not accept what was sent (400)."""


class NotFound(InputError):
    """The server does not have it (404)."""


class Conflict(InputError):
    """It exists already (409)."""


class NoAnswer(InputError):
    """No answer, or one that may pass (`RETRIED`): whether the server did what was asked is not known."""

    def __init__(self, line: str, status: int = 0) -> None:
        """Keeps the HTTP status, or 0 where no answer came."""
        super().__init__(line)
        self.status = status


class Server:
    """One Kubeflow Pipelines server and a namespace on it."""

    def __init__(self, endpoint: str = "", namespace: str = "", ca_cert: str = "", retry_timeout: float = 60.0) -> None:
        """Signs in, and checks that the server speaks v2beta1.

        Args:
            endpoint: its address; empty: the environment's.
            namespace: of the runs; empty: this pod's, where the server has several users.
            ca_cert: PEM file of the authority that signed its certificate.
            retry_timeout: seconds for which a call is retried.

        Raises:
            InputError: it does not answer, refuses the login, or is not such a server.
        """
        self.address = auth.endpoint(endpoint)
        self.namespace = namespace
        self.retry_timeout = retry_timeout
        self._api = auth.api_client(self.address, ca_cert)
        self._signed_in = False
        self.runs = kfp_server_api.RunServiceApi(self._api)
        self.pipelines = kfp_server_api.PipelineServiceApi(self._api)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(self._api)
        self.experiments = kfp_server_api.ExperimentServiceApi(self._api)
        try:
            health = self.call(kfp_server_api.HealthzServiceApi(self._api).healthz_service_get_healthz)
        except NotFound:
            raise InputError(
                f"{self.address} has no v2beta1 API: give the address of Kubeflow Pipelines 2.17 or newer (behind"
                " Kubeflow's dashboard it ends in /pipeline)"
            ) from None
        self._signed_in = True
        if health.multi_user and not namespace:
            self.namespace = auth.pod_namespace()
            if not self.namespace:
                raise InputError(f"{self.address} serves several users: give --namespace")

    def call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls what may be called twice, and retries it until `retry_timeout` is over.

        Raises:
            InputError: the server's answer in one line.
        """
        deadline, tries = time.monotonic() + self.retry_timeout, 0
        while True:
            try:
                return self.call_once(method, *arguments, **options)
            except NoAnswer as error:
                pause = BACKOFF[min(tries, len(BACKOFF) - 1)]
                tries += 1
                # A login that never worked gets one more try, for a token that was renewed at this moment.
                bad_login = error.status == 401 and not self._signed_in and tries > 1
                if bad_login or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)

    def call_once(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls without a retry.

        Raises:
            NoAnswer: whether the server did it is not known.
            InputError: the server's answer in one line.
        """
        try:
            answer = method(*arguments, _request_timeout=TIMEOUT, **options)
        except kfp_server_api.ApiException as error:
            raise self._explain(error) from None
        except urllib3.exceptions.HTTPError as error:
            raise NoAnswer(f"{self.address} does not answer: {_without_objects(error)}") from None
        except AttributeError as error:  # kfp_server_api decodes the body of an answer that never came
            reason = str(getattr(error.__context__, "reason", "")).partition("\n")[2]
            raise InputError(
                f"{self.address}: no secure connection: {reason[:200]}; name the authority's certificate with --ca-cert"
            ) from None
        content_type = self._api.last_response.getheader("content-type") or ""
        if answer is not None and "json" not in content_type:
            raise InputError(
                f"{self.address} answers with a page ({content_type or 'no type'}), not as an API: sign in with"
                f" {auth.TOKEN_VARIABLE} or {auth.COOKIE_VARIABLE}, and check the endpoint's path"
            )
        return answer

    def _explain(self, error: kfp_server_api.ApiException) -> InputError:
        status = error.status
        # The error itself is never shown: it quotes headers, and those may set cookies.
        line = f"{self.address}: {_message(error.body) or error.reason or 'no reason'} (HTTP status {status})"
        if status == 401:
            return NoAnswer(f"{self.address} does not know this login (401): {SIGN_IN}", status)
        if status in RETRIED:
            return NoAnswer(line, status)
        if 300 <= status < 400:
            return InputError(f"{self.address} leads to a login page ({status}): {SIGN_IN}")
        if status == 403:
            return InputError(f"{line}; this login may not do that in namespace {self.namespace or 'of the server'}")
        kinds: dict[int, type[InputError]] = {400: BadRequest, 404: NotFound, 409: Conflict}
        return kinds.get(status, InputError)(line)

    def run(self, run_id: str) -> tuple[kfp_server_api.V2beta1Run, list[dict[str, Any]]]:
        """As `full_run`, and retried.

        Raises:
            InputError: the server's answer in one line.
        """
        found: tuple[kfp_server_api.V2beta1Run, list[dict[str, Any]]] = self.call(full_run, self._api, run_id)
        return found

    def log(self, run_id: str, pod: str) -> str:
        """What a run's pod wrote, or '' where the server does not give it."""
        return self._text(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log")

    def run_v1(self, run_id: str) -> str:
        """A run as the v1beta1 API writes it, with Argo's Workflow in it, or '' where the server does not give it."""
        return self._text(f"/apis/v1beta1/runs/{run_id}")

    def _text(self, path: str) -> str:
        try:
            answer = self._api.call_api(
                path, "GET", auth_settings=["Bearer"], response_type="str", _preload_content=False,
                _return_http_data_only=True, _request_timeout=TIMEOUT,
            )  # fmt: skip
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError, AttributeError):
            return ""
        return str(answer.data.decode("utf-8", "replace")) if 200 <= answer.status < 300 else ""

    def url(self, run_id: str) -> str:
        """The run's page in the UI."""
        return f"{os.environ.get(auth.UI_VARIABLE, self.address).rstrip('/')}/#/runs/details/{run_id}"


def full_run(
    api: kfp_server_api.ApiClient, run_id: str, **options: Any
) -> tuple[kfp_server_api.V2beta1Run, list[dict[str, Any]]]:
    """A run, and the tasks of its full view.

    kfp_server_api 2.17 knows neither the view nor the tasks. A server with ML Metadata ignores the view and has no such
    tasks.
    """
    run = api.call_api(
        "/apis/v2beta1/runs/{run_id}", "GET", path_params={"run_id": run_id}, query_params=[("view", "FULL")],
        header_params={"Accept": "application/json"}, auth_settings=["Bearer"], response_type="V2beta1Run",
        _return_http_data_only=True, **options,
    )  # fmt: skip
    try:
        written = json.loads(api.last_response.data)
    except ValueError:  # a page, which `call_once` refuses
        written = {}
    return run, written.get("tasks") or [] if isinstance(written, dict) else []


def filter_by(key: str, value: str, operation: str = "EQUALS") -> str:
    """A filter of the API's lists."""
    return json.dumps({"predicates": [{"operation": operation, "key": key, "string_value": value}]})


def _message(body: Any) -> str:
    try:
        answer = json.loads(body or "")
    except (TypeError, ValueError):
        return ""
    if not isinstance(answer, dict):
        return ""
    text = answer.get("message") or answer.get("error_message") or answer.get("error") or ""
    return " ".join(str(text).split())[:300]


def _without_objects(error: Exception) -> str:
    """An error of urllib3 without the objects that it names.

    They look like "<urllib3.connection.HTTPSConnection object at 0x...>: Failed to ..." and "HTTPConnection(host=...):
    Read timed out."
    """
    text = str(getattr(error, "reason", None) or error)
    return " ".join(text.rsplit(">: ", 1)[-1].split("): ", 1)[-1].split())[:200]
