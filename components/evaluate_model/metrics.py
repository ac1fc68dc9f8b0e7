"""Scores of generated answers, each from 0 to 1."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any


def score(answer: str, reference: str, metrics: Sequence[str]) -> dict[str, float]:
    """One answer's scores by metric; `exact_match` is always among them."""
    known = {"exact_match": exact_match, "json_keys": json_keys, "rouge_l": rouge_l, "chrf": chrf}
    return {name: known[name](answer, reference) for name in ["exact_match", *metrics]}


def exact_match(answer: str, reference: str) -> float:
    """1 where an answer is right: equal as JSON where the reference is a JSON object, else equal as text.

    Of the answer only what is between the outermost braces counts, so that no model loses its point for a fence or a
    sentence around its JSON.
    """
    expected = _json_object(reference)
    if expected is None:
        return float(answer.strip() == reference.strip())
    found = _json_object(_braced(answer))
    return float(found is not None and dict(_leaves(found)) == dict(_leaves(expected)))


def json_keys(answer: str, reference: str) -> float:
    """Share of the keys, of both objects together, that have the same value in both; nested keys count one by one.

    So a key that is missing costs as much as one too many. Where the reference is no JSON object, it is `exact_match`.
    """
    wanted = _json_object(reference)
    if wanted is None:
        return exact_match(answer, reference)
    expected, found = dict(_leaves(wanted)), dict(_leaves(_json_object(_braced(answer)) or {}))
    keys = expected.keys() | found.keys()
    return len(expected.items() & found.items()) / len(keys) if keys else 1.0


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L (Lin 2004, section 3.1), through rouge-score.

    With L words in the longest common subsequence, precision P is L / words of the answer, recall R is L / words of the
    reference, and the score is 2 P R / (P + R). Words are runs of letters and digits of any script; rouge-score's own
    tokenizer knows a to z only, and would give every answer in Russian 0.
    """
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """chrF2 (Popović 2015; recall weighs twice as much as precision, Popović 2016), through sacrebleu.

    Precision P and recall R are means over n-grams of 1 to 6 characters, white space left out; the score is
    5 P R / (4 P + R). It needs no words, so it serves languages that do not separate them, and gives part of the score
    for a word of the right stem. sacrebleu gives it in percent.
    """
    from sacrebleu.metrics import CHRF

    return float(CHRF().sentence_score(answer, [reference]).score) / 100


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def _braced(text: str) -> str:
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
            yield (*path, key), json.dumps(_integral(item), sort_keys=True)


def _integral(value: Any) -> Any:
    """A value with its floats that are whole as integers: 1.0 is 1 in JSON."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_integral(item) for item in value] if isinstance(value, list) else value
