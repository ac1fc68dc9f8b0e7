"""Real servers for the integration tests: S3 (Ceph's gateway, else moto), MLflow with logins, a proxy that breaks."""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
CEPH = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "monmaptool", "ceph-authtool", "radosgw-admin")
ADMIN, ADMIN_PASSWORD = "admin", "a-long-admin-password"


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_ceph() -> bool:
    """Whether Ceph's gateway is installed (Debian: radosgw ceph-mon ceph-osd ceph-common)."""
    return all(shutil.which(name) for name in CEPH)


@contextlib.contextmanager
def ceph() -> Iterator[str]:
    """Ceph's S3 gateway over one monitor and one store in memory; yields its endpoint.

    Now and then the gateway never answers on a fresh store; then it is started anew, three times at most.
    """
    for last in (False, False, True):
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceph-")))
            try:
                endpoint = _start_ceph(folder, stack)
            except TimeoutError as error:
                if last:
                    logs = [log.read_text(errors="replace")[-500:] for log in sorted(folder.glob("*.out"))]
                    raise TimeoutError("\n".join(["Ceph did not come up; its servers said last:", *logs])) from error
                continue
            yield endpoint
            return


def _start_ceph(folder: Path, stack: contextlib.ExitStack) -> str:
    port, monitor, fsid = free_port(), free_port(), str(uuid.uuid4())
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    conf = folder / "ceph.conf"
    conf.write_text(
        f"""
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{monitor}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
keyring = {folder}/keyring
mon cluster log file = {folder}/cluster.log
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.$pid.asok
pid file = {folder}/$name.pid
crash dir = {folder}
ms bind msgr2 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 8589934592
mon allow pool size one = true
mon warn on pool no redundancy = false
[mon]
mon data = {folder}/mon
mon data avail crit = 0  # else the monitor ends itself where less than 5 % of the disk is free
[osd]
osd data = {folder}/osd
[client]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw thread pool size = 32
"""
    )
    ask = ["-c", str(conf)]
    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    _once("ceph-authtool", "-C", keyring, "-g", "-n", "mon.", "--cap", "mon", "allow *")
    rights = [word for daemon in ("mon", "osd", "mgr") for word in ("--cap", daemon, "allow *")]
    _once("ceph-authtool", keyring, "-g", "-n", "client.admin", *rights)
    _once("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{monitor}]", "--fsid", fsid, monmap, "--clobber")
    _once("ceph-mon", *ask, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    stack.enter_context(process(["ceph-mon", *ask, "-i", "a", "-f"], folder / "mon.out"))
    disk = str(uuid.uuid4())
    until(lambda: _answers("ceph", *ask, "osd", "new", disk))
    _once("ceph-osd", *ask, "-i", "0", "--mkfs", "--osd-uuid", disk)
    stack.enter_context(process(["ceph-osd", *ask, "-i", "0", "-f"], folder / "osd.out"))
    stack.enter_context(process(["radosgw", *ask, "-n", "client.admin", "-f"], folder / "rgw.out"))
    endpoint = f"http://127.0.0.1:{port}"
    until(lambda: listens(endpoint))
    user = ["user", "create", "--uid=test", "--display-name=test"]
    keys = [f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
    until(lambda: _answers("radosgw-admin", *ask, *user, *keys))
    return endpoint


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """Moto's S3 server in a process of its own; yields its endpoint. It checks no signatures."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory() as folder,
        process([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], Path(folder) / "log"),
    ):
        until(lambda: listens(endpoint))
        yield endpoint


@contextlib.contextmanager
def mlflow(folder: Path, artifacts: str) -> Iterator[str]:
    """`mlflow server` with basic auth and sqlite, its artifacts on S3; yields its address, without login.

    Args:
        folder: keeps its databases and its log.
        artifacts: `s3://` prefix that it hands artifacts on to.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = {ADMIN}\n"
        "auth_cache_ttl_seconds = 60\n"  # else each request spends a third of a second on the password's hash
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    own = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # five processes that nothing here asks of
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key for this server's cookies",
        "MLFLOW_S3_ENDPOINT_URL": os.environ.get("AWS_ENDPOINT_URL_S3", ""),
    }
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--app-name", "basic-auth", "--workers", "2"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", artifacts]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with process(command, folder / "mlflow.log", clean | {name: value for name, value in own.items() if value}):
        until(lambda: listens(f"{address}/version"), seconds=300)
        yield address


@contextlib.contextmanager
def process(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A server in the background with its output in a file; it and its children end with the block."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=log.parent, start_new_session=True
        )
    try:
        yield
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(running.pid, how)
                running.wait(10)


def listens(address: str) -> bool:
    """Whether a server answers there, with whatever status."""
    try:
        urllib.request.urlopen(address, timeout=3).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _once(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def _answers(*command: str) -> bool:
    try:  # a first connection to Ceph sometimes hangs: give up on it early
        return subprocess.run(command, check=False, capture_output=True, timeout=12).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def until(ready: Callable[[], bool], seconds: float = 45) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("the server did not come up")
        time.sleep(0.3)


class Proxy:
    """A TCP proxy before a server: it passes bytes on as they are, so the Host header and signatures stay valid.

    Args:
        target: `http://host:port` of the server.
    """

    def __init__(self, target: str) -> None:
        """Starts to listen; see `address`."""
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = self.cuts = 0
        self._refusing, self._pass, self._cuts_left = False, -1, 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def refuse(self, refusing: bool = True) -> None:
        """From now on closes every new connection at once, and cuts those that are open; or stops doing so."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def cut(self) -> None:
        """Cuts all open connections."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def cut_after(self, size: int, times: int) -> None:
        """Cuts the next `times` connections over which more than `size` bytes went in one direction."""
        self._pass, self._cuts_left = size, times

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._refusing:
                client.close()
            else:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            self._open |= {client, server}
            try:
                self._pump(client, server)
            finally:
                self._open -= {client, server}

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        passed = {client: 0, server: 0}
        while True:
            for source in select.select([client, server], [], [])[0]:
                data = source.recv(1 << 16)
                passed[source] += len(data)
                if not data or self._refusing:  # also a connection that was accepted just before
                    return
                if self._cuts_left and passed[source] > self._pass:
                    self._cuts_left -= 1
                    self.cuts += 1
                    return
                other[source].sendall(data)
