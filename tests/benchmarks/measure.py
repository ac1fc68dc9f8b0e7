"""Memory of a command: its high-water mark, children included."""

import subprocess
import sys
import time
from pathlib import Path

MODEL = Path("runs/models/SmolLM2-135M-Instruct")
"""Where `make demo` puts the model that is measured."""


def high_water(pid: int) -> dict[int, int]:
    """VmHWM in KiB of a process and of all below it, by process id; those that have ended are left out."""
    found = {}
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        found[pid] = int(status.split("VmHWM:")[1].split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= high_water(int(child))
    except (OSError, IndexError):
        pass
    return found


def resident() -> float:
    """Resident memory of this process, in MiB."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def run(command: list[str], every: float = 0.05) -> tuple[str, float]:
    """Runs a command to its end.

    Args:
        command: program and arguments.
        every: seconds between two looks at its memory; VmHWM keeps what happened in between.

    Returns:
        what it printed, and the sum over its processes of each one's peak resident memory, in MiB.

    Raises:
        RuntimeError: it failed.
    """
    peaks: dict[int, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True) as process:
        while process.poll() is None:
            peaks |= high_water(process.pid)
            time.sleep(every)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    return output, sum(peaks.values()) / 1024
