"""A PostgreSQL of the tests' own, where it is installed (Debian: `postgresql`)."""

import contextlib
import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.integration import servers

USER, PASSWORD = "mlflow", "p%ss@word/:"
"""With characters that an address would have to escape."""
_DEBIAN = Path("/usr/lib/postgresql")


def program(name: str) -> str | None:
    """Where one of PostgreSQL's programs is; Debian keeps them off the PATH."""
    return shutil.which(name) or max(map(str, _DEBIAN.glob(f"*/bin/{name}")), default=None)


@contextlib.contextmanager
def running() -> Iterator[int]:
    """A server that asks for a password; yields its port. It refuses root, so for root it runs as `postgres`."""
    user = "postgres" if getpass.getuser() == "root" else None
    port = servers.free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        data, password = Path(folder) / "data", Path(folder) / "password"
        password.write_text(PASSWORD)
        if user:
            shutil.chown(folder, user)
            shutil.chown(password, user)
        command = [
            program("initdb"),
            "-D",
            data,
            "-U",
            USER,
            "--pwfile",
            password,
            "--auth",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run([str(word) for word in command], check=True, capture_output=True, user=user, cwd=folder)
        server = [str(program("postgres")), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
        with subprocess.Popen(
            server, user=user, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            try:
                ready = [str(program("pg_isready")), "-h", "127.0.0.1", "-p", str(port)]
                servers.until(lambda: subprocess.run(ready, check=False, capture_output=True).returncode == 0)
                make = [str(program("createdb")), "-h", "127.0.0.1", "-p", str(port), "-U", USER, "mlflow"]
                subprocess.run(make, check=True, env=os.environ | {"PGPASSWORD": PASSWORD})
                yield port
            finally:
                process.terminate()
