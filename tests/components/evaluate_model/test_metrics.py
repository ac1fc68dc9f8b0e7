import pytest

from qlora_pipelines.components.evaluate_model.metrics import exact_match, json_keys, score


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ('Sure!\n```json\n{"b": 2, "a": 1}\n```', '{"a": 1, "b": 2}', True),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ("no braces", '{"a": 1}', False),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": 1.0}', '{"a": 1}', True),
        ('{"a": {"b": [1, {"c": 2}]}}', '{"a": {"b": [1.0, {"c": 2}]}}', True),
        ("}{", '{"a": 1}', False),
        ("", '{"a": 1}', False),
        (f'{{"a": {"9" * 5000}}}', '{"a": 1}', False),
        (" yes \n", "yes", True),
        ("yes, it is", "yes", False),
    ],
)
def test_answers_are_compared_as_json_where_the_reference_is_json(answer: str, reference: str, right: bool) -> None:
    assert exact_match(answer, reference) == right


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"a": 1, "b": {"c": 2, "d": 3}}', 1.0),
        ('{"a": 1, "b": {"c": 2, "d": 4}}', 2 / 3),
        ('{"a": 1, "b": {"c": 2, "d": 3}, "e": 0}', 3 / 4),
        ('{"a": 1}', 1 / 3),
        ("", 0.0),
    ],
)
def test_json_is_compared_key_by_key(answer: str, share: float) -> None:
    assert json_keys(answer, '{"a": 1, "b": {"c": 2, "d": 3}}') == pytest.approx(share)


def test_texts_are_marked_by_words_and_characters_of_any_script() -> None:
    same = score("Кот сидит на коврике", "Кот сидит на коврике", ["rouge_l", "chrf"])
    assert same == pytest.approx({"exact_match": 1, "rouge_l": 1, "chrf": 1})
    half = score("the cat sat", "the cat sat on the mat", ["rouge_l", "chrf"])
    assert half["rouge_l"] == pytest.approx(2 * 1 * 0.5 / 1.5), "precision 1, recall 3 of 6"
    assert 0.3 < half["chrf"] < 0.7 and half["exact_match"] == 0
    assert set(score("", "yes", ["rouge_l", "chrf"]).values()) == {0.0}
