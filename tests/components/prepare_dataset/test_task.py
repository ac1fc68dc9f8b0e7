import datetime
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
from click.testing import CliRunner

from qlora_pipelines.components.core.data import chat_template, listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.prepare_dataset import preparing
from qlora_pipelines.pipelines.cli.main import main
from tests.components.prepare_dataset import templates
from tests.conftest import conversation, write_jsonl

WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "system", "user", "sat", "on", "the"]


def distinct(number: int, seed: int = 0) -> list[dict[str, object]]:
    rng = random.Random(seed)
    return [conversation(" ".join(rng.choices(WORDS, k=12)), " ".join(rng.choices(WORDS, k=3))) for _ in range(number)]


@pytest.fixture(autouse=True)
def _store(place: Path) -> None:
    """A store of the test's own."""


def test_every_row_is_kept_or_a_duplicate_or_rejected(tmp_path: Path, prepared: Callable) -> None:
    rows = distinct(100)
    lines = [json.dumps(row) for row in [*rows, rows[0], rows[1]]]
    lines[50:50] = ["not json", json.dumps({"messages": [{"role": "user", "content": "q"}]})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    run = prepared(tmp_path / "rows.jsonl", max_rejected_share=0.1)
    assert run.result.train_rows + run.result.eval_rows == 100
    assert (run.result.duplicate_rows, run.result.rejected_rows) == (2, 2)
    assert [(json.loads(line)["line"], json.loads(line)["reason"]) for line in run.rejected.splitlines()] == [
        (51, "not JSON"),
        (52, "no assistant turn"),
    ]
    assert {sample.id for sample in run.side("train")}.isdisjoint(sample.id for sample in run.side("eval"))


def test_one_process_and_two_and_chunks_of_any_number_write_the_same_bytes(tmp_path: Path, prepared: Callable) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", distinct(1500) + distinct(30))
    one, again, two = prepared(data), prepared(data), prepared(data, processes=2)
    for name in ("train.parquet", "eval.parquet", "rejected.jsonl", "report.html"):
        assert (one.folder / name).read_bytes() == (again.folder / name).read_bytes(), name
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name
    assert one.result == two.result


def test_how_a_file_is_chunked_does_not_change_the_digest(
    tmp_path: Path, prepared: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", distinct(300))
    whole = prepared(data)
    monkeypatch.setattr(preparing, "CHUNK_ROWS", 7)
    assert prepared(data).result.dataset_digest == whole.result.dataset_digest


def test_a_row_stays_on_its_side_as_the_data_grows(tmp_path: Path, prepared: Callable) -> None:
    rows = distinct(600)
    few = prepared(write_jsonl(tmp_path / "few.jsonl", rows[:300]))
    many = prepared(write_jsonl(tmp_path / "many.jsonl", rows[::-1]))
    for side in ("train", "eval"):
        assert {sample.id for sample in few.side(side)} <= {sample.id for sample in many.side(side)}


def test_rows_given_to_evaluate_on_are_never_trained_on(tmp_path: Path, prepared: Callable) -> None:
    rows = distinct(200)
    question = rows[5]["messages"][0]["content"]
    near = conversation(question.upper(), rows[5]["messages"][1]["content"])
    evaluation = write_jsonl(tmp_path / "eval.jsonl", rows[:20])
    run = prepared(write_jsonl(tmp_path / "train.jsonl", [near, *rows[10:]]), evaluation)
    assert {sample.messages[0]["content"] for sample in run.side("eval")} == {
        row["messages"][0]["content"] for row in rows[:20]
    }
    assert run.result.duplicate_rows == 11
    assert near["messages"] not in [sample.messages for sample in run.side("train")]


def test_training_rows_that_share_words_with_evaluation_rows_go_where_asked(tmp_path: Path, prepared: Callable) -> None:
    rows = distinct(60)
    question = str(rows[0]["messages"][0]["content"])
    within = conversation(" ".join(random.Random(9).choices(WORDS, k=60)) + " " + question, "cat")
    evaluation = write_jsonl(tmp_path / "eval.jsonl", rows[:5])
    data = write_jsonl(tmp_path / "train.jsonl", [within, *rows[5:]])
    assert prepared(data, evaluation, max_length=512).result.duplicate_rows == 0
    assert prepared(data, evaluation, max_length=512, decontaminate_words=10).result.duplicate_rows == 1
    with pytest.raises(InputError, match="decontaminate_words compares with evaluation data, and the listing has none"):
        prepared(data, decontaminate_words=10)


def test_group_and_slice_and_tools_reach_the_reader(tmp_path: Path, prepared: Callable) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [row | {"group": f"g{place % 3}", "slice": "s", "tools": tools} for place, row in enumerate(distinct(40))]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=r"rows\.jsonl:1 the chat template does not write tools"):
        prepared(data)
    samples = prepared(data, template=templates.QWEN, max_length=500).side("train")
    assert {sample.group for sample in samples} == {"g0", "g1", "g2"}
    assert all(sample.slice == "s" and sample.tools == tools for sample in samples)


def test_training_evaluation_and_serving_see_the_same_text(
    tmp_path: Path, prepared: Callable, tiny_model: Path
) -> None:
    """Serving renders the turns before the answer with the mark that asks for one; the model then writes the rest."""
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", distinct(50)))
    tokenizer = loading.load_tokenizer(tiny_model)
    for sample in run.side("train"):
        text = tokenizer.decode(sample.encoded.input_ids).encode()
        assert text == chat_template.render(tokenizer, sample.messages).encode()
        prompt = chat_template.render(tokenizer, sample.messages[:-1], add_generation_prompt=True).encode()
        first = next(place for place, label in enumerate(sample.encoded.labels) if label != chat_template.IGNORED)
        assert tokenizer.decode(sample.encoded.input_ids[:first]).encode() == prompt
        supervised = [label for label in sample.encoded.labels if label != chat_template.IGNORED]
        assert tokenizer.decode(supervised) == f"{sample.messages[-1]['content']}<|im_end|>"


def test_an_answer_cut_off_whole_is_rejected_and_one_cut_in_part_is_kept(tmp_path: Path, prepared: Callable) -> None:
    rows = [*distinct(50), conversation("mat " * 100, "cat"), conversation("one", "two " * 100)]
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", rows), max_rejected_share=0.5)
    assert json.loads(run.rejected) == {
        "file": str(tmp_path / "rows.jsonl"),
        "line": 51,
        "reason": "nothing of an answer within 64 tokens",
    }
    assert max(len(sample.encoded.input_ids) for side in ("train", "eval") for sample in run.side(side)) == 64


def test_a_row_of_five_megabytes_is_one_row(tmp_path: Path, prepared: Callable) -> None:
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", [*distinct(50), conversation("one", "two three " * 500_000)]))
    assert run.result.train_rows + run.result.eval_rows == 51


def test_too_many_unusable_rows_stop_the_run_with_the_first_ten_reasons(tmp_path: Path, prepared: Callable) -> None:
    rows = distinct(80) + [{"messages": [{"role": "user", "content": "my secret"}]}] * 20
    with pytest.raises(InputError, match=r"20 of 100 rows cannot be used \(20.0%, allowed are 1.0%\)") as error:
        prepared(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert str(error.value).count("no assistant turn") == 10 and "rows.jsonl:81" in str(error.value)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "out0" / "train.parquet").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([conversation("one", "two")] * 5, "no row is left to train on|no row is left to evaluate on"),
        ([{"a": 1}], "of no known form"),
        ([conversation("mat " * 100, "cat")], "1 of 1 rows cannot be used"),
    ],
)
def test_nothing_left_is_one_clear_line(
    tmp_path: Path, prepared: Callable, rows: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepared(write_jsonl(tmp_path / "rows.jsonl", rows))


def test_mixed_forms_in_one_file_are_counted(tmp_path: Path, prepared: Callable) -> None:
    rows = [*distinct(50), {"instruction": "q", "output": "a"}, {"text": "t"}]
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", rows), max_rejected_share=0.1)
    assert run.result.rejected_rows == 2
    assert "of form alpaca in a file of form messages" in run.rejected


def test_named_columns_and_plain_text_go_through(tmp_path: Path, prepared: Callable) -> None:
    rows = [{"body": " ".join(random.Random(seed).choices(WORDS, k=10)), "id": seed} for seed in range(40)]
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", rows), form="text", columns={"text": "body", "group": "id"})
    sample = run.side("train")[0]
    assert sample.messages == [] and sample.group and sample.encoded.supervised == len(sample.encoded.labels) - 1


def test_only_the_last_answer_is_supervised_where_asked(tmp_path: Path, prepared: Callable) -> None:
    for row in (rows := distinct(40)):
        row["messages"] = [
            *row["messages"],
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "five"},
        ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    last, every = prepared(data, supervise="last").side("train"), prepared(data).side("train")
    assert all(one.encoded.supervised < other.encoded.supervised for one, other in zip(last, every, strict=True))


def test_the_report_shows_where_rows_went_and_what_the_model_sees(tmp_path: Path, prepared: Callable) -> None:
    rows = [*distinct(60), conversation("<script>alert(1)</script>", "<b>one</b>"), *distinct(2)]
    report = prepared(write_jsonl(tmp_path / "rows.jsonl", rows)).report
    assert "left out: the same conversation is elsewhere" in report
    assert report.count("<pre>") == 12 and "<mark title=" in report and "<i>&lt;|im_end|&gt;</i>" in report
    assert "tokenised by fastokens" in report and "<script>" not in report
    assert "http" not in report.replace("http-equiv", "")


def test_a_file_that_changed_since_it_was_listed_is_refused(
    tmp_path: Path, prepared: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", distinct(40))
    save = listing.save

    def save_then_change(listed: listing.Listing) -> str:
        uri = save(listed)
        write_jsonl(data, distinct(41))
        return uri

    monkeypatch.setattr(listing, "save", save_then_change)
    with pytest.raises(InputError, match=r"rows\.jsonl changed since the run was planned"):
        prepared(data)


def test_row_groups_are_small_however_many_rows(
    tmp_path: Path, prepared: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "CHUNK_ROWS", 50)
    monkeypatch.setattr("qlora_pipelines.components.core.data.tokenized.ROW_GROUP", 100)
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", distinct(400)))
    file = pyarrow.parquet.ParquetFile(run.folder / "train.parquet")
    assert file.num_row_groups >= 3
    assert len(run.side("train")) == run.result.train_rows


def test_values_that_json_has_no_form_for_are_rejected(tmp_path: Path, prepared: Callable) -> None:
    call = {"function": {"name": "add", "arguments": {"when": datetime.datetime(2026, 1, 1), "number": float("nan")}}}
    bad = {"role": "assistant", "content": "cat", "tool_calls": [call]}
    rows = [*distinct(40), {"messages": [{"role": "user", "content": "one"}, bad]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run = prepared(tmp_path / "rows.parquet", max_rejected_share=0.1)
    assert json.loads(run.rejected)["reason"] == "holds a value that JSON has no form for"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "file").write_text("")
    data = write_jsonl(tmp_path / "rows.jsonl", distinct(40))
    places = {name: str(tmp_path / "file" / name) for name in ("train-set", "eval-set", "rejected", "report")}
    options = [f"--{name}={place}" for name, place in places.items()]
    listing_uri = listing.save(listing.make(str(data)))
    command = ["step", "prepare_dataset", f"--listing-uri={listing_uri}", f"--tokenizer-uri={tiny_model}", *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert result.output == (
        f"[prepare_dataset] error: {tmp_path}/file: File exists; give another place, or make room and rights there\n"
    )


def test_reviews_under_one_instruction_stay_and_many_near_duplicates_are_a_warning(
    tmp_path: Path, prepared: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(7)
    instruction = " ".join(rng.choices(WORDS, k=30))
    rows = [conversation(f"{instruction} {' '.join(rng.choices(WORDS, k=8))}", WORDS[n % 3]) for n in range(60)]
    run = prepared(write_jsonl(tmp_path / "reviews.jsonl", rows))
    assert run.result.duplicate_rows == 0 and "Near duplicates" not in run.report
    asked = [" ".join(rng.choices(WORDS, k=50)) for _ in range(60)]
    near = [conversation(f"{question}{end}", "cat") for question in asked for end in ("", " now")]
    run = prepared(write_jsonl(tmp_path / "near.jsonl", near), max_length=256)
    assert run.result.duplicate_rows == 60
    said = "50% of the rows count as near duplicates of others and are left out"
    assert f"warning: {said}" in capsys.readouterr().out and said in run.report
    assert run.report.partition("stays in its place")[2].count(" now") >= 3
