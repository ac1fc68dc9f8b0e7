"""Run by `helm test` in the project's image with a step's addresses and logins: what does a pod here reach?

python -c THIS NAMESPACE [--ca-cert FILE]
"""

import os
import sys

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines.kfp_api.client import Server


def store() -> str:
    """The store can be written, read and deleted in."""
    storage.check_writable(storage.root())
    return f"{storage.root()} can be written, read and deleted in"


def mlflow() -> str:
    """MLflow answers and lets one register."""
    mlflow_client.check_registering(mlflow_client.connect())
    return f"{os.environ['MLFLOW_TRACKING_URI']} answers and lets one register"


def kfp() -> str:
    """Kubeflow Pipelines answers and lets this service account see its namespace."""
    namespace, ca_cert = sys.argv[1], sys.argv[-1] if "--ca-cert" in sys.argv else ""
    server = Server(namespace=namespace, ca_cert=ca_cert)
    server.call(server.experiments.experiment_service_list_experiments, namespace=server.namespace, page_size=1)
    return f"{server.address} answers and lets one in"


failed = False
for check in (store, mlflow, kfp):
    try:
        print(f"ok      {check.__name__}: {check()}", flush=True)
    except InputError as error:
        failed = True
        print(f"FAILED  {check.__name__}: {error}", flush=True)
sys.exit(failed)
