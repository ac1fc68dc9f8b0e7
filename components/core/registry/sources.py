"""The source of a version in MLflow: the address of its files as MLflow's readers understand it.

MLflow (3.17, `mlflow/store/artifact/artifact_repository_registry.py`) reads s3:// and gs:// as they are, but of Azure
only `wasbs://CONTAINER@ACCOUNT.blob.core.windows.net/PATH`: it does not know az://, and its server refuses to register
an abfss:// source (`mlflow/store/artifact/host_policy.py`). All three name the same blobs, and the store reads all
three; so this spelling is the one to register, and the one to compare addresses in.
"""

import os
import re

from qlora_pipelines.components.core.store import addresses
from qlora_pipelines.components.core.store.addresses import AZURE_CLOUDS

ACCOUNT_VARIABLE = "AZURE_STORAGE_ACCOUNT_NAME"
"""The storage account that az:// addresses are in, as obstore reads it."""
ENDPOINT_VARIABLE = "AZURE_STORAGE_ENDPOINT"
"""Its blob service, where that is not in Azure's public cloud; read by obstore too."""


def source_uri(uri: str) -> str:
    """The source to register of a folder in the store; the same blobs give the same, however they are spelt.

    Local paths, s3:// and gs:// stay as they are. So does what wasbs:// cannot express: an address in Microsoft Fabric,
    and an az:// one of which the environment does not name the account, so that nothing here can read it either.
    """
    if found := re.fullmatch(rf"abfss://([^@/]+)@([^./]+)\.dfs\.core\.({AZURE_CLOUDS})(/.*)?", uri):
        container, account, cloud, path = found.groups(default="")
        return f"wasbs://{container}@{account}.blob.core.{cloud}{path}"
    own = os.environ.get(ACCOUNT_VARIABLE)
    if own and (found := re.fullmatch(r"az://([^@/]+)(/.*)?", uri)):
        container, path = found.groups(default="")
        return f"wasbs://{container}@{own}.blob.core.{_own_cloud()}{path}"
    return uri


def resolved(uri: str) -> str:
    """One spelling for every address of the same files, to compare by: of a local one, without links in its path."""
    source = source_uri(uri.rstrip("/"))
    return source if addresses.is_remote(source) else os.path.realpath(addresses.local_path(source))


def https_uri(uri: str) -> str:
    """The same folder as KServe's storage initializer reads it: blobs of Azure by https://, all else by its source."""
    source = source_uri(uri)
    found = re.fullmatch(r"wasbs://([^@/]+)@([^/]+)(/.*)?", source)
    return f"https://{found[2]}/{found[1]}{found[3] or ''}" if found else source


def _own_cloud() -> str:
    found = re.search(rf"\.blob\.core\.({AZURE_CLOUDS})(?=[:/]|$)", os.environ.get(ENDPOINT_VARIABLE, ""))
    return found[1] if found else "windows.net"
