"""The address of Kubeflow Pipelines, and the login.

    KF_PIPELINES_ENDPOINT       address, where --endpoint is not given (kfp's own name)
    QLORA_KFP_TOKEN             a bearer token
    KF_PIPELINES_SA_TOKEN_PATH  a file with one, read again at each request, because a projected service account
                                token is renewed every hour (kfp's own name, and its default path in a cluster)
    QLORA_KFP_COOKIE            the session cookie of a Kubeflow behind Dex or oauth2-proxy, NAME=VALUE

Credentials have no option on the command line: every process on the machine could read them there.
"""

import os
import urllib.parse
import urllib.request
from pathlib import Path

import kfp_server_api
import urllib3

from qlora_pipelines.components.core.errors import InputError

ENDPOINT_VARIABLE = "KF_PIPELINES_ENDPOINT"
UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
TOKEN_VARIABLE = "QLORA_KFP_TOKEN"
TOKEN_PATH_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
COOKIE_VARIABLE = "QLORA_KFP_COOKIE"
TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"
NAMESPACE_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


def endpoint(given: str) -> str:
    """The address to use: the given one, the environment's, or in a cluster the service's.

    Raises:
        InputError: none is known, or it is not an address.
    """
    address = (given or os.environ.get(ENDPOINT_VARIABLE, "")).strip()
    if not address and "KUBERNETES_SERVICE_HOST" in os.environ:
        return IN_CLUSTER
    if not address:
        raise InputError(f"no server is given: use --endpoint https://HOST/pipeline, or set {ENDPOINT_VARIABLE}")
    if "://" not in address:
        address = f"https://{address}"
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise InputError("the endpoint is not an address; give one such as https://HOST/pipeline")
    if parts.username or parts.password:
        raise InputError(f"the endpoint holds a password; give the address alone, and sign in with {TOKEN_VARIABLE}")
    return address.rstrip("/")


def pod_namespace() -> str:
    """The namespace of the pod that this runs in, or '' outside a cluster."""
    try:
        return Path(NAMESPACE_PATH).read_text().strip()
    except OSError:
        return ""


def api_client(address: str, ca_cert: str) -> kfp_server_api.ApiClient:
    """A client of the API at `address`, signed in as the environment says.

    Args:
        address: as `endpoint` gives it.
        ca_cert: PEM file of the authority that signed the server's certificate; empty: those Python trusts.

    Raises:
        InputError: there is no such file, or a credential has characters that none can have.
    """
    if ca_cert and not Path(ca_cert).is_file():
        raise InputError(f"CA certificate {ca_cert}: no such file")
    config = kfp_server_api.Configuration(host=address)
    config.ssl_ca_cert = ca_cert or None
    # A redirect leads to a login page, never to an answer. client.py decides what is retried.
    config.retries = urllib3.Retry(total=False)
    parts = urllib.parse.urlsplit(address)
    if not urllib.request.proxy_bypass(parts.hostname or ""):
        config.proxy = urllib.request.getproxies().get(parts.scheme)
    if token := _token():
        config.api_key["authorization"] = token
        config.api_key_prefix["authorization"] = "Bearer"
        config.refresh_api_key_hook = lambda config: config.api_key.update(authorization=_token())
    cookie = _checked(COOKIE_VARIABLE, os.environ.get(COOKIE_VARIABLE, ""))
    return kfp_server_api.ApiClient(config, cookie=cookie or None)


def _token() -> str:
    if given := os.environ.get(TOKEN_VARIABLE, ""):
        return _checked(TOKEN_VARIABLE, given)
    named = os.environ.get(TOKEN_PATH_VARIABLE, "")
    try:
        return _checked(named or TOKEN_PATH, Path(named or TOKEN_PATH).read_text())
    except (OSError, UnicodeDecodeError) as error:
        if named:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise InputError(f"{TOKEN_PATH_VARIABLE} names {named}: {reason}") from None
        return ""


def _checked(name: str, secret: str) -> str:
    secret = secret.strip()
    if not secret.isascii() or not secret.isprintable():
        raise InputError(f"{name} has characters that no token or cookie can have")
    return secret
