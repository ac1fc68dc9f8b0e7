"""What a local run shows: plain lines into a file, a table with a bar on a terminal."""

import io
import re

import pytest
import yaml

from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from qlora_pipelines.pipelines.local import progress, runner

LOG = """12:00:00.000 - INFO - Executing task \x1b[96m'plan-run'\x1b[0m
    [plan_run] warning: the base is gated
    [plan_run] done in 2 s
12:00:02.000 - INFO - Task \x1b[96m'plan-run'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
12:00:02.000 - INFO - Executing task \x1b[96m'train-qlora'\x1b[0m
    [train_qlora] training: 10/40, loss 0.0515, 1 min 22 s left
    something a library printed
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def titles() -> dict[str, str]:
    return progress.titles(next(yaml.safe_load_all(GOLDEN.read_text())))


def shown(output: io.StringIO, titles: dict[str, str], log: str) -> tuple[str, str]:
    on = progress.on(output, titles)
    lines = runner._Log(io.StringIO(), on)
    lines.write(log)
    on.close()
    return output.getvalue(), lines.last_error


def test_tasks_are_named_in_the_order_they_can_run(titles: dict[str, str]) -> None:
    names = list(titles.values())
    assert names[0] == "plan-run" and names[-1] == "register-model" and len(names) == 8
    assert names.index("train-qlora") < names.index("evaluate-tuned") < names.index("dequantize-and-merge")


def test_a_file_gets_one_line_a_message(titles: dict[str, str]) -> None:
    output, _ = shown(io.StringIO(), titles, LOG)
    assert [line.split(maxsplit=2)[2] for line in output.splitlines()] == [
        "plan-run              warning: the base is gated",
        "plan-run              done in 2 s",
        "train-qlora           training: 10/40, loss 0.0515, 1 min 22 s left",
    ]


def test_a_terminal_gets_all_steps_and_a_bar_for_the_one_at_work(
    titles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    output, _ = shown(Terminal(), titles, LOG)
    output = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output)
    last = output[output.rindex("✓") :]
    assert "✓ plan-run" in last and "▸ train-qlora" in last and "· register-model" in last
    assert "━" in last and "10/40  loss 0.0515, 1 min 22 s left" in last
    assert "warning: the base is gated" in output and "library" not in output


@pytest.mark.parametrize("output", [io.StringIO, Terminal])
def test_an_error_is_kept_for_the_end(output: type[io.StringIO], titles: dict[str, str]) -> None:
    failed = LOG + "    [train_qlora] error: out of memory\nTask 'train-qlora' finished with status FAILURE\n"
    text, error = shown(output(), titles, failed)
    assert error == "train_qlora: out of memory" and "out of memory" not in text
