"""Download, upload and pull of one large file against boto3's transfer manager, and against this project's own boto3.

    python -m tests.benchmarks.store_vs_boto3

400 MiB of random bytes on Ceph's gateway where it is installed, else on moto, over loopback. Each transfer is a process
of its own, timed without its start and without making a client; the sides take turns, and of each the median counts.
`before` is the code of the last commit that moved bytes with boto3 (1502f14), where git has it. Our downloads compare
the file's sha256; the others compare nothing. A pull is a download that ends with a comparison of all hashes, for boto3
a download and a hash.
"""

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration import servers

SIZE = 400 << 20
ROUNDS = 3
BEFORE = "1502f14"
BUCKET = "bench"
VERBS = ("upload", "download", "pull")

CHILD = """
import hashlib, json, sys, time
from pathlib import Path

side, verb, uri, folder, sha256 = sys.argv[1:]
folder, name = Path(folder), uri.rsplit("/", 1)[1]
bucket, _, key = uri.removeprefix("s3://").partition("/")
source, prefix = folder / "source" / name, uri.rsplit("/", 1)[0]
files = {name: {"size": source.stat().st_size, "sha256": sha256}}
target = folder / f"{side}-{verb}"
if side == "boto3":
    import boto3

    client = boto3.client("s3")

    def upload():
        client.upload_file(str(source), bucket, key)

    def download():
        target.mkdir()
        client.download_file(bucket, key, str(target / name))

    def pull():
        download()
        with (target / name).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
elif side == "before":
    import importlib

    pulling, registered, storage = (
        importlib.import_module(f"components.core.{name}") for name in ("pulling", "registered", "storage")
    )
    storage.s3_client()

    def upload():
        storage.upload_file(source, uri)

    def download():
        storage.download(prefix, target)

    def pull():
        pulling.pull(registered.Registered(prefix, files, sha256, b""), target)
else:
    from qlora_pipelines.components.core.registry import manifest
    from qlora_pipelines.components.core.store import connections, copies, storage
    from qlora_pipelines.pipelines.cli import pull as pulling

    connections.connect(uri)

    def upload():
        storage.upload_file(source, uri)

    def download():
        copies.download(prefix, target, [storage.Entry(name, files[name]["size"], f"sha256:{sha256}")])

    def pull():
        pulling.copy(manifest.Manifest(prefix, files, sha256, b""), target)

started = time.monotonic()
locals()[verb]()
seconds = time.monotonic() - started
if verb != "upload":
    assert (target / name).stat().st_size == source.stat().st_size
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps([seconds, peak]))
"""


@contextlib.contextmanager
def _before(folder: Path) -> Iterator[str]:
    """A folder with the code of BEFORE; '' where there is no git or no such commit."""
    archive = subprocess.run(["git", "archive", BEFORE, "components", "pipelines"], capture_output=True, check=False)
    if archive.returncode:
        yield ""
        return
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    yield str(folder)


def measure(size: int = SIZE, rounds: int = ROUNDS) -> dict[str, float]:
    """The figures: ratios of throughput, peaks in MiB, and what they are made of in MiB/s."""
    import boto3

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        endpoint = stack.enter_context(servers.ceph() if servers.has_ceph() else servers.moto())
        before = stack.enter_context(_before(folder / "before"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "QLORA_"))} | {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": servers.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": servers.SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        keys = {"aws_access_key_id": servers.ACCESS_KEY, "aws_secret_access_key": servers.SECRET_KEY}
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(Bucket=BUCKET)
        source = folder / "source" / "weights"
        source.parent.mkdir()
        source.write_bytes(os.urandom(size))
        sha256 = subprocess.run(["sha256sum", source], capture_output=True, text=True, check=True).stdout.split()[0]
        found: dict[tuple[str, str], list[list[float]]] = {}
        for _ in range(rounds):
            for verb in VERBS:
                for side in ("ours", "boto3", *(["before"] if before else [])):
                    result = _child(side, verb, folder, sha256, environment)
                    found.setdefault((side, verb), []).append(result)
                    subprocess.run(["rm", "-rf", folder / f"{side}-{verb}"], check=True)
    figures: dict[str, float] = {}
    seconds = {key: statistics.median(each[0] for each in results) for key, results in found.items()}
    for verb in VERBS:
        figures[f"store_{verb}_vs_boto3"] = seconds["boto3", verb] / seconds["ours", verb]
        if before:
            figures[f"store_{verb}_vs_before"] = seconds["before", verb] / seconds["ours", verb]
    peaks = {key: max(each[1] for each in results) for key, results in found.items()}
    figures["store_peak_mib"] = max(peaks["ours", verb] for verb in VERBS)
    for side, verb in found:
        figures[f"store_{verb}_{side}_mib_s"] = (size >> 20) / seconds[side, verb]
        figures[f"store_{verb}_{side}_peak_mib"] = peaks[side, verb]
    return figures


def _child(side: str, verb: str, folder: Path, sha256: str, environment: dict[str, str]) -> list[float]:
    uri = f"s3://{BUCKET}/files/weights"
    command = [sys.executable, "-c", CHILD, side, verb, uri, str(folder), sha256]
    # Python looks for modules where it is started first.
    place = folder / "before" if side == "before" else Path.cwd()
    done = subprocess.run(command, env=environment, cwd=place, stdout=subprocess.PIPE, text=True, check=True)
    result: Any = json.loads(done.stdout.strip().splitlines()[-1])
    return [float(each) for each in result]


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}, indent=1))
