"""Tar archives: read in place, and refused where they hold anything but files of data."""

import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_pipelines.components.core.data import listing, readers
from qlora_pipelines.components.core.errors import InputError

Member = tuple[str | tarfile.TarInfo, bytes]
LINES = b'{"text": "a"}\n{"text": "b"}\n'


def packed(*members: Member) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for named, content in members:
            info = tarfile.TarInfo(named) if isinstance(named, str) else named
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def of_type(kind: bytes, name: str = "a.jsonl", target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(path: Path) -> list[tuple[str, int, Any]]:
    return [
        (name.removeprefix(f"{path}/"), number, readers.decode(record))
        for name, records in readers.files(path, str(path))
        for number, record in records
    ]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress], ids=["tar", "tar.gz", "tar.xz"])
def test_the_rows_of_all_files_in_it_are_read_in_order(
    tmp_path: Path, compress: Callable[[bytes], bytes], request: pytest.FixtureRequest
) -> None:
    table = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": ["c"]}), table)
    made = packed(
        (of_type(tarfile.DIRTYPE, "./shards"), b""), ("./shards/1.jsonl", LINES), ("2.parquet", table.getvalue()),
        ("3.csv.gz", gzip.compress(b"text\nd\n")), (f"{'long' * 60}.json", json.dumps([{"text": "e"}]).encode()),
    )  # fmt: skip
    path = tmp_path / f"rows.{request.node.callspec.id}"
    path.write_bytes(compress(made))
    assert listing.kind_of(str(path)) == ".tar"
    found = read(path)
    assert [(name[-12:], number, row["text"]) for name, number, row in found] == [
        ("ards/1.jsonl", 1, "a"), ("ards/1.jsonl", 2, "b"), ("2.parquet", 1, "c"), ("3.csv.gz", 2, "d"),
        ("longlong.json"[-12:], 1, "e"),
    ]  # fmt: skip


def test_documents_in_it_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(packed(("a.txt", b"\xef\xbb\xbfone\r\ntwo"), ("b/c.md", "# né\u2028".encode())))
    assert read(tmp_path / "a.tar") == [("a.txt", 1, {"text": "one\r\ntwo"}), ("b/c.md", 1, {"text": "# né\u2028"})]


def test_one_archive_after_another_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(packed(("a.jsonl", LINES)) + packed(("b.jsonl", LINES)))
    assert [name for name, *_ in read(tmp_path / "a.tar")] == ["a.jsonl"] * 2 + ["b.jsonl"] * 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a.jsonl", LINES)], "'../a.jsonl' is no name for a file below a folder"),
        ([("/etc/a.jsonl", LINES)], "'/etc/a.jsonl' is no name for a file below a folder"),
        ([(of_type(tarfile.SYMTYPE), b"")], "'a.jsonl' in it is no ordinary file; archive files alone"),
        ([("b.jsonl", LINES), (of_type(tarfile.LNKTYPE, target="b.jsonl"), b"")], "'a.jsonl' in it is no ordinary"),
        ([(of_type(tarfile.FIFOTYPE), b"")], "'a.jsonl' in it is no ordinary file"),
        ([("._a.jsonl", b"x")], "._a.jsonl in it is hidden"),
        ([("a.jsonl", LINES), ("model.bin", b"x")], "model.bin: this kind is not read in an archive"),
        ([("a.tar.gz", b"x")], "a.tar.gz: this kind is not read in an archive"),
        ([("a.jsonl", LINES), ("README.md", b"x")], "README.md: this kind is not read in an archive"),
        ([(f"{'x' * 100_000}.jsonl", LINES)], "the archive is cut short or damaged"),
    ],
)
def test_what_it_may_not_hold_is_named(tmp_path: Path, members: list[Member], message: str) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(packed(*members)))
    with pytest.raises(InputError) as error:
        read(path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["a.tar.gz"]


def test_what_is_damaged_or_cut_short_is_no_end(tmp_path: Path) -> None:
    whole = packed(("a.jsonl", LINES), ("b.jsonl", LINES), ("c.jsonl", LINES))
    path = tmp_path / "a.tar"
    bad_header = bytearray(whole)
    bad_header[1024 + 5] ^= 1
    endless = b"".join(packed((of_type(tarfile.GNUTYPE_LONGNAME), b""))[:512] for _ in range(3000))
    for data in (bytes(bad_header), whole[:1024], whole[:1300], whole[:2000], endless, b"", b"no archive" * 100):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.tar"):
            read(path)


def test_a_header_that_claims_to_be_large_is_not_read_into_memory(tmp_path: Path) -> None:
    info = of_type(tarfile.XHDTYPE)
    info.size = 1 << 33
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(InputError, match="cut short or damaged"):
        read(tmp_path / "a.tar")


def test_data_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "EXPANDS_FREELY", 1 << 20)
    for name, compress in (("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress), ("a.tar.gz", gzip.compress)):
        data = b" " * (20 << 20)
        (tmp_path / name).write_bytes(compress(packed(("a.jsonl", data)) if "tar" in name else data))
        with pytest.raises(InputError, match=f"{name}.*: it expands to over 500 times its size; is it data"):
            read(tmp_path / name)
