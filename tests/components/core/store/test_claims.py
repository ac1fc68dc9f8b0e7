"""Of several runs with the same claim place one passes; the races are in tests/pipelines/kfp_api/test_races.py."""

from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import claims, storage
from qlora_pipelines.components.core.store.claims import Claim

EARLY, LATE = Claim(1, "20260101T120000.000000Z-00000000"), Claim(1, "20260101T120001.000000Z-00000000")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PAUSE", 0.2)


@pytest.fixture
def key(place: Path) -> str:
    return claims.place("training", "tickets")


def settle(key: str, claim: Claim, run_id: str) -> None:
    claims.settle(key, claim, run_id, claims.write(key, claim, run_id))


def test_a_claim_survives_its_journey_as_text() -> None:
    claim = claims.new(3)
    assert claims.parse(str(claim)) == claim and claim.attempt == 3


@pytest.mark.parametrize("text", ["x", "1", "1-x", "1-20260101T120000.000000Z-0000000/", "../1-2"])
def test_what_is_no_claim_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not one that qlora trigger made; leave it empty"):
        claims.parse(text)


def test_the_earliest_passes_and_the_others_name_it(key: str) -> None:
    claims.write(key, EARLY, "one")
    with pytest.raises(InputError, match="run one makes the same model and came first; this one is not needed"):
        settle(key, LATE, "two")
    settle(key, EARLY, "one")
    settle(key, EARLY, "one")  # a pod tried again


def test_who_passed_is_not_overtaken_by_an_earlier_claim(key: str) -> None:
    settle(key, LATE, "one")
    with pytest.raises(InputError, match="run one makes the same model and passed this point already"):
        settle(key, EARLY, "two")
    settle(key, LATE, "one")


def test_a_copy_of_a_run_with_its_claim_does_not_pass_too(key: str) -> None:
    settle(key, EARLY, "one")
    with pytest.raises(InputError, match=r"run one .* To run it all the same, empty claim"):
        settle(key, EARLY, "a copy made in the UI")


def test_another_attempt_and_another_model_are_no_rivals(key: str) -> None:
    settle(key, EARLY, "one")
    settle(key, Claim(2, LATE.stamp), "two")
    settle(claims.place("training", "other"), LATE, "three")


def test_a_store_that_is_too_slow_to_tell_lets_nobody_pass(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = claims.write(key, EARLY, "one")
    write = storage.write_bytes

    def slow(uri: str, data: bytes) -> None:
        claims.time.sleep(0.15)
        write(uri, data)

    monkeypatch.setattr(claims.storage, "write_bytes", slow)
    with pytest.raises(TransientError, match="took too long"):
        claims.settle(key, EARLY, "one", written)
