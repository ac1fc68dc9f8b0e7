"""The servers that the other tests rest on do what those tests believe."""

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import botocore.exceptions
import pytest

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.components.core.store.addresses import locate
from tests.integration.servers import ACCESS_KEY, Proxy, has_ceph


def client(endpoint: str, **others: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", endpoint_url=endpoint, config=Config(retries={"max_attempts": 1}), **others)


def test_files_written_to_s3_are_read_back(own_store: str) -> None:
    storage.write_bytes(f"{own_store}/a/b", b"hello")
    assert storage.read_bytes(f"{own_store}/a/b") == b"hello"
    assert storage.sizes(own_store) == {"a/b": 5}


@pytest.mark.skipif(not has_ceph(), reason="only Ceph checks signatures here")
def test_a_wrong_secret_is_refused(s3_store: str) -> None:
    with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
        client(
            os.environ["AWS_ENDPOINT_URL_S3"], aws_access_key_id=ACCESS_KEY, aws_secret_access_key="wrong"
        ).list_buckets()


def test_mlflow_asks_for_a_login_and_takes_the_admins(mlflow_server: str, own_store: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{mlflow_server}/api/2.0/mlflow/registered-models/search")
    mlflow_client.check_registering(mlflow_client.connect())


def test_the_proxy_cuts_and_refuses_and_signatures_pass_through_it(
    s3_store: str, own_store: str, proxy: Callable[[str], Proxy]
) -> None:
    storage.write_bytes(f"{own_store}/large", b"x" * 1_000_000)
    between = proxy(os.environ["AWS_ENDPOINT_URL_S3"])
    place = locate(f"{own_store}/large")
    bucket, key = place.bucket, place.key
    own = client(between.address)
    assert len(own.get_object(Bucket=bucket, Key=key)["Body"].read()) == 1_000_000
    between.cut_after(100_000, times=1)
    with pytest.raises(Exception, match=r"incomplete|IncompleteRead|Connection broken|reset"):
        client(between.address).get_object(Bucket=bucket, Key=key)["Body"].read()
    assert between.cuts == 1
    between.refuse()
    with pytest.raises(botocore.exceptions.BotoCoreError):
        client(between.address).head_object(Bucket=bucket, Key=key)
    between.refuse(False)
    assert client(between.address).head_object(Bucket=bucket, Key=key)["ContentLength"] == 1_000_000
