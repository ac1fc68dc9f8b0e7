"""Marks for generated answers, each from 0 to 1."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any


def marks(answer: str, reference: str, metrics: list[str]) -> dict[str, float]:
    """One answer's marks by metric; `exact_match` is always among them."""
    return {name: _METRICS[name](answer, reference) for name in dict.fromkeys(["exact_match", *metrics])}


def exact_match(answer: str, reference: str) -> float:
    """1 where an answer is right: equal as JSON where the reference is a JSON object, else equal as text.

    The outermost braces are what counts of an answer, so that a fence or a sentence around JSON costs no model its
    point.
    """
    wanted = _json_object(reference)
    if wanted is None:
        return float(answer.strip() == reference.strip())
    found = _json_object(_braces(answer))
    return float(found is not None and dict(_leaves(found)) == dict(_leaves(wanted)))


def json_keys(answer: str, reference: str) -> float:
    """Share of the keys, of both objects together, that have the same value in both; nested keys count one by one.

    Where the reference is no JSON object, it is `exact_match`.
    """
    wanted = _json_object(reference)
    if wanted is None:
        return exact_match(answer, reference)
    expected, found = dict(_leaves(wanted)), dict(_leaves(_json_object(_braces(answer)) or {}))
    keys = expected.keys() | found.keys()
    equal = sum(key in expected and key in found and expected[key] == found[key] for key in keys)
    return equal / len(keys) if keys else 1.0


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), through rouge-score.

    Words are runs of letters and digits of any script; rouge-score's own tokenizer knows a to z only.
    """
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """F-score of character n-grams (Popović 2015), through sacrebleu."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().sentence_score(answer, [reference]).score) / 100


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


_METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "json_keys": json_keys,
    "rouge_l": rouge_l,
    "chrf": chrf,
}


def _braces(text: str) -> str:
    return text[text.find("{") : text.rfind("}") + 1]


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # an integer of thousands of digits is a ValueError too
        return None
    return value if isinstance(value, dict) else None


def _leaves(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every value that is no object, by its path, as canonical JSON: so `true` is not 1, though 1.0 is."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _leaves(item, (*path, key))
        else:
            yield (*path, key), json.dumps(_whole(item), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_whole(item) for item in value] if isinstance(value, list) else value
