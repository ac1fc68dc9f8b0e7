"""What objects.py rests on, on a real S3 that checks signatures: odd names, cut connections, changed bytes."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import connections, copies, objects, s3, storage
from qlora_pipelines.components.core.store.addresses import locate
from tests.integration import servers
from tests.meddling import MEDDLINGS, Meddler, meddler

MakeProxy = Callable[[str], servers.Proxy]


def put(uri: str, content: bytes = b"") -> None:
    place = locate(uri)
    client = connections.client(os.environ["AWS_ENDPOINT_URL_S3"])
    client.put_object(Bucket=place.bucket, Key=place.key, Body=content)


@pytest.fixture
def between(own_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meddler]:
    with meddler(os.environ["AWS_ENDPOINT_URL_S3"]) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", found.address)
        yield found


@pytest.mark.skipif(not servers.has_ceph(), reason="moto takes no such names")
@pytest.mark.parametrize("key", ["a/../x", "/etc/x", "a//x", "a/./x", "a\nx", "a\x7fx", "a\\x"], ids=repr)
def test_an_object_that_cannot_be_a_file_is_refused_at_the_listing(key: str, own_store: str, tmp_path: Path) -> None:
    uri = f"{own_store}/{abs(hash(key))}"
    put(f"{uri}/good.jsonl", b'{"text": "a"}\n')
    put(f"{uri}/{key}", b"x")
    for read in (lambda: listing.make(uri), lambda: copies.download(uri, tmp_path), lambda: storage.sizes(uri)):
        with pytest.raises(InputError, match="rename") as error:
            read()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_stands_for_a_folder_is_none(own_store: str) -> None:
    for key in ("", "a/", "a", "empty/"):
        put(f"{own_store}/tree/{key}")
    storage.write_bytes(f"{own_store}/tree/a/b", b"x")
    storage.write_bytes(f"{own_store}/tree/nothing", b"")
    assert storage.sizes(f"{own_store}/tree") == {"a/b": 1, "nothing": 0}


def test_a_file_and_its_neighbours(own_store: str) -> None:
    for name in ("data", "data/a", "data-old/a", "dat"):
        storage.write_bytes(f"{own_store}/{name}", b"x")
    assert storage.sizes(f"{own_store}/data") == {"data": 1, "a": 1}
    assert storage.sizes(f"{own_store}/data/a") == {"a": 1}
    assert abs(storage.clock(own_store) - time.time()) < 5


@pytest.mark.parametrize("size", [100_000, 40_000_000], ids=["small", "of three parts"])
def test_a_cut_connection_is_made_anew(size: int, own_store: str, proxy: MakeProxy, tmp_path: Path) -> None:
    """Small objects as well as parts of large ones, read and written."""
    between = proxy(os.environ["AWS_ENDPOINT_URL_S3"])
    content = os.urandom(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", between.address)
        between.cut_after(size // 4 if size < 1 << 20 else 9_000_000, times=3)
        (tmp_path / "file").write_bytes(content)
        storage.upload_file(tmp_path / "file", f"{own_store}/file")
        assert between.cuts
        (entry,) = storage.files(f"{own_store}/file")
        between.cuts = 0
        between.cut_after(size // 4 if size < 1 << 20 else 9_000_000, times=3)
        assert copies.fetch(f"{own_store}/file", entry, tmp_path).read_bytes() == content
        assert between.cuts
    assert not list(s3.pending_uploads(own_store))


@pytest.mark.parametrize("meddling", MEDDLINGS)
def test_changed_bytes_are_refused(meddling: str, own_store: str, between: Meddler, tmp_path: Path) -> None:
    storage.write_bytes(f"{own_store}/file", b"x" * 1000)
    (entry,) = storage.files(f"{own_store}/file")
    between.meddling, between.only = meddling, "file"
    for read in (lambda: storage.read_bytes(f"{own_store}/file"), lambda: copies.download(own_store, tmp_path)):
        with pytest.raises(TransientError, match="bytes came"):
            read()
    with pytest.raises(InputError):
        copies.fetch(f"{own_store}/file", entry, tmp_path)
    between.meddling = ""
    assert copies.fetch(f"{own_store}/file", entry, tmp_path).read_bytes() == b"x" * 1000


@pytest.mark.skipif(not servers.has_ceph(), reason="only Ceph checks signatures here")
def test_what_the_store_refuses_is_one_line(own_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    connections.forget()
    for do in (storage.read_bytes, storage.sizes, storage.delete, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(TransientError) as error:
            do(f"{own_store}/file")
        assert str(error.value) == (
            f"{own_store}/file: SignatureDoesNotMatch; check the address, the endpoint and the credentials"
        )
    monkeypatch.undo()
    connections.forget()


def test_an_upload_that_is_given_up_leaves_nothing(own_store: str) -> None:
    with pytest.raises(RuntimeError), objects.writing(f"{own_store}/large") as write:
        for _ in range(3):
            write(b"x" * objects.PART)
        raise RuntimeError
    assert storage.sizes(own_store) == {} and not list(s3.pending_uploads(own_store))


def test_several_threads_read_and_write(own_store: str) -> None:
    failed = []

    def work(number: int) -> None:
        for turn in range(5):
            storage.write_bytes(f"{own_store}/{number}", b"%d" % turn)
            if storage.read_bytes(f"{own_store}/{number}") != b"%d" % turn:
                failed.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(storage.sizes(own_store)) == 16
