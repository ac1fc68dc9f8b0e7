"""The same rows from every kind of file are the same data set, and plain documents are rows."""

import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.plan_run import sampling
from tests.components.core.data.test_arrow_rows import ROUTE, WEATHER, row
from tests.conftest import write_jsonl

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}{% for message in messages %}<|im_start|>"
    "{{ message.role }}\n{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLACES = ["lamp", "chair", "clock", "kettle", "bridge", "garden", "ferry", "museum", "violin", "ladder"]


def tool_rows() -> list[dict[str, Any]]:
    """Conversations of which each has other keys in its tools and arguments."""
    found = []
    for number in range(40):
        place = PLACES[number % 10]
        asked = row(WEATHER, town=f"{place} {number}") if number % 2 else row(ROUTE, goal={"place": place, "x": number})
        asked["messages"][0]["content"] = f"{number} {place} to {PLACES[number // 10]}"
        found.append(asked)
    return found


@pytest.fixture(autouse=True)
def _store(place: Path) -> None:
    """A store of the test's own."""


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl.xz", "json", "tar.gz"])
def test_the_same_rows_are_the_same_data_set(kind: str, tmp_path: Path, prepared: Callable[..., Any]) -> None:
    lines = write_jsonl(tmp_path / "rows.jsonl", tool_rows())
    path, table = tmp_path / f"other.{kind}", pa.Table.from_pylist(tool_rows())
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    elif kind == "jsonl.xz":
        path.write_bytes(lzma.compress(lines.read_bytes()))
    elif kind == "json":
        path.write_text(json.dumps(tool_rows()))
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(lines, "shards/1.jsonl")
    expected, found = (
        prepared(data, template=TEMPLATE, max_length=1024, near_duplicate_threshold=0) for data in (lines, path)
    )
    assert found.result == expected.result and found.result.train_rows + found.result.eval_rows == 40


def test_a_rejected_row_of_an_archive_is_named_by_the_file_in_it(tmp_path: Path, prepared: Callable[..., Any]) -> None:
    path = tmp_path / "rows.tar.gz"
    good = write_jsonl(tmp_path / "rows.jsonl", tool_rows())
    bad = write_jsonl(tmp_path / "bad.jsonl", [*tool_rows()[:1], {"messages": []}])
    with tarfile.open(path, "w:gz") as archive:
        archive.add(good, "good.jsonl")
        archive.add(bad, "sub/bad.jsonl")
    run = prepared(path, template=TEMPLATE, max_length=1024, max_rejected_share=0.5)
    said = json.loads(run.rejected)
    assert (said["file"], said["line"]) == (f"{path}/sub/bad.jsonl", 2)
    assert f"{path}/good.jsonl" in run.report


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_documents_are_trained_on_one_by_one(
    packed: bool, tmp_path: Path, tiny_model: Path, prepared: Callable[..., Any]
) -> None:
    data = tmp_path / ("docs.tar" if packed else "docs")
    texts = {f"{name}{number}.{'md' if number % 2 else 'txt'}": f"the {name} {number} " * 3
             for name in PLACES for number in range(4)}  # fmt: skip
    if packed:
        with tarfile.open(data, "w") as archive:
            for name, text in texts.items():
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
    else:
        data.mkdir()
        for name, text in texts.items():
            (data / name).write_text(text)
    run = prepared(data, near_duplicate_threshold=0)
    assert run.result.train_rows + run.result.eval_rows == len(texts)
    config = RunConfig.parse(base_model=str(tiny_model), dataset_uri=str(data), model_name="n", max_length=64)
    found = sampling.sample(listing.make(str(data))["train"], config, tiny_model)
    assert (found.form, found.rows, found.supervised) == ("text", len(texts), pytest.approx(1, abs=0.2))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_extra_columns_go_along_with_their_rows(
    kind: str, tmp_path: Path, tiny_model: Path, prepared: Callable[..., Any]
) -> None:
    rows = [{"prompt": f"{place} {n}", "completion": place, "source": f"s{n}", "n": n, "more": "x"}
            for place in PLACES for n in range(3)]  # fmt: skip
    data = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_jsonl(data, rows)
    else:
        table = pa.Table.from_pylist(rows)
        (pyarrow.parquet.write_table if kind == "parquet" else pyarrow.csv.write_csv)(table, data)
    run = prepared(data, extra_columns=["source", "n"], near_duplicate_threshold=0)
    for sample in [*run.side("train"), *run.side("eval")]:
        number = sample.messages[0]["content"].split()[1]
        assert sample.extra == {"source": f"s{number}", "n": number if kind == "csv" else int(number)}
    with pytest.raises(InputError, match="extra_columns: no row has other; name columns of the data"):
        prepared(data, extra_columns=["source", "other"])
    options = {"prepare_dataset": {"extra_columns": ["other"]}}
    config = RunConfig.parse(base_model=str(tiny_model), dataset_uri=str(data), model_name="n", options=options)
    with pytest.raises(InputError, match=r"no column other, which extra_columns names \(completion, more, n, prompt"):
        sampling.sample(listing.make(str(data))["train"], config, tiny_model)
