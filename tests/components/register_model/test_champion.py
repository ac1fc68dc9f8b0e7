from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from qlora_pipelines.components.register_model import task
from tests.components.register_model.registering import Killed, aliases, register


def test_champion_moves_only_from_the_version_that_was_compared_with(fresh: Callable[[str], tuple[str, str]]) -> None:
    one, two, three = (fresh(f"move-{number}") for number in "123")
    assert register("moves", *one).outcome == "champion"
    # The gate of this one compared with no champion; meanwhile there is one.
    late = register("moves", *two)
    assert late == ("2", "models:/moves/2", "candidate: version 1 now, the gate compared with none")
    assert aliases("moves") == {"champion": "1", "candidate": "2"}
    assert register("moves", *three, champion_version="1").outcome == "champion"
    assert aliases("moves") == {"champion": "3", "candidate": "3", "previous": "1"}
    # Judged again, against today's champion.
    assert register("moves", *two, champion_version="1").outcome.startswith("candidate: version 3 now")
    assert register("moves", *two, champion_version="3").outcome == "champion"
    assert aliases("moves") == {"champion": "2", "candidate": "3", "previous": "3"}


def test_of_two_models_compared_with_the_same_champion_one_wins(fresh: Callable[[str], tuple[str, str]]) -> None:
    register("rivals", *fresh("rival-0"))
    rivals = [fresh(f"rival-{number}") for number in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda rival: register("rivals", *rival, champion_version="1"), rivals))
    winners = [result for result in results if result.outcome == "champion"]
    assert len(winners) == 1
    assert aliases("rivals")["champion"] == winners[0].model_version
    assert aliases("rivals")["previous"] == "1"


def test_a_registration_that_died_long_ago_does_not_hold_others_up(
    fresh: Callable[[str], tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    register("held-up", *fresh("held-up-1"))
    uri, key = fresh("held-up-2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "_write_files", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            register("held-up", uri, key, champion_version="1")
    outcome = register("held-up", *fresh("held-up-3"), champion_version="1").outcome
    assert outcome == "candidate: version 2 was being registered at the same time"
    monkeypatch.setattr(task, "AT_WORK_MS", 0)
    assert register("held-up", *fresh("held-up-4"), champion_version="1").outcome == "champion"


def test_a_model_of_the_champions_own_training_takes_its_place(fresh: Callable[[str], tuple[str, str]]) -> None:
    """Merged otherwise: the gate compared both with the same champion, which plan_run handed on again."""
    training = {"evidence": {"training_key": "t"}}
    register("again", *fresh("again-0"), evidence={"training_key": "other"})
    assert register("again", *fresh("again-1"), champion_version="1", **training).outcome == "champion"
    otherwise = fresh("again-2")
    assert register("again", *otherwise, champion_version="1", **training).outcome == "champion"
    assert register("again", *otherwise, champion_version="1", **training).outcome == "champion"
    assert aliases("again") == {"champion": "3", "candidate": "3", "previous": "2"}
    # Another training, whose gate compared with a version that is no longer the one to match.
    late = register("again", *fresh("again-3"), champion_version="1", evidence={"training_key": "late"})
    assert late.outcome == "candidate: version 3 now, the gate compared with version 1"
    # The same training, whose gate had nothing to match.
    unmatched = register("again", *fresh("again-4"), **training)
    assert unmatched.outcome == "candidate: version 3 now, the gate compared with none"
