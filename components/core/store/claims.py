"""Of several runs with one training_key, one goes on.

Two triggers at the same moment start two runs. A store has no lock (S3's `If-None-Match` is none on a versioned
bucket), but it shows at once what was written. So each run writes a claim, waits, and looks:

    STORE/claims/<training_key>/<model name>/<attempt>/<stamp>.<run id>.claimed
    STORE/claims/<training_key>/<model name>/<attempt>/<stamp>.<run id>.passed

The earliest stamp passes and says so; who sees an earlier claim, or another that passed, ends. Why two cannot pass:
let A look and not see B's claim. Then B claimed after A looked, B waits PAUSE before it looks itself, and A wrote
`passed` within half of that, or ended. No other machine's clock is relied on: a wrong one only changes who is earliest.
"""

import re
import secrets
import time
from datetime import UTC, datetime
from typing import NamedTuple

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import storage

PAUSE = 30.0
"""Seconds between a claim and the look at the others; by then a trigger's surplus run, ended by itself, is gone."""
_FORM = re.compile(r"(\d{1,6})-(\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8})")


class Claim(NamedTuple):
    """Which try of a key a run is (from 1), and its place among those of the same try."""

    attempt: int
    stamp: str

    def __str__(self) -> str:
        """As it travels in a run's parameter."""
        return f"{self.attempt}-{self.stamp}"


def new(attempt: int) -> Claim:
    """A claim made now."""
    return Claim(attempt, f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}")


def parse(text: str) -> Claim:
    """The claim that a run's parameter holds.

    Raises:
        InputError: it holds none.
    """
    found = _FORM.fullmatch(text)
    if not found:
        raise InputError(f"claim {text!r} is not one that qlora trigger made; leave it empty")
    return Claim(int(found[1]), found[2])


def write(key_uri: str, claim: Claim, run_id: str) -> float:
    """Writes a run's claim; returns the time of this process' clock from which `settle` waits.

    Args:
        key_uri: the claims of one training and model name, as `place` names it.
        claim: the run's.
        run_id: tells apart runs with the same claim, such as a copy made in the UI.

    Raises:
        InputError: the store cannot be written.
    """
    storage.write_bytes(storage.join(key_uri, str(claim.attempt), f"{claim.stamp}.{run_id}.claimed"), b"")
    return time.monotonic()


def settle(key_uri: str, claim: Claim, run_id: str, written: float) -> None:
    """Waits until PAUSE after the claim was written, and lets one run of those with claims pass.

    Raises:
        InputError: another run goes on in this one's place, named by its id; or the store is too slow to tell.
    """
    time.sleep(max(0.0, written + PAUSE - time.monotonic()))
    looked = time.monotonic()
    folder = storage.join(key_uri, str(claim.attempt))
    own = f"{claim.stamp}.{run_id}"
    found = [entry.path.rpartition(".") for entry in storage.listing(folder)]
    passed = {name for name, _, state in found if state == "passed"}
    if others := passed - {own}:
        raise _lost(min(others), "passed this point already")
    earlier = [name for name, _, state in found if state == "claimed" and name < own]
    if earlier and own not in passed:
        raise _lost(min(earlier), "came first")
    storage.write_bytes(storage.join(folder, f"{own}.passed"), b"")
    if time.monotonic() - looked > PAUSE / 2:
        raise TransientError(f"{folder}: the store took too long to write a claim; the run is tried again")


def place(training_key: str, model_name: str) -> str:
    """Where the claims of one training and model name are in the store."""
    return storage.join(storage.root(), "claims", training_key, model_name)


def _lost(other: str, why: str) -> InputError:
    run_id = other.split(".", 2)[-1]
    return InputError(
        f"run {run_id} makes the same model and {why}; this one is not needed. To run it all the same, empty claim"
    )
