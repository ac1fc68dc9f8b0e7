"""What a local run shows: plain lines into a file, a table with a bar on a terminal."""

import io
import json
import re

import pytest

from qlora_pipelines.pipelines.compiler import compiled
from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from qlora_pipelines.pipelines.local import progress, runner


def said(step: str, message: str, level: str = "info", **data: object) -> str:
    return "    " + json.dumps({"step": step, "level": level, "message": message, **data}) + "\n"


AT = {"what": "training", "done": 10, "total": 40, "note": "loss 0.0515", "seconds_left": 82.1}
LOG = (
    "12:00:00.000 - INFO - Executing task \x1b[96m'plan-run'\x1b[0m\n"
    + said("plan_run", "the base is gated", "warning")
    + said("plan_run", "done in 2 s", seconds=2.0)
    + "12:00:02.000 - INFO - Task \x1b[96m'plan-run'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m\n"
    + "12:00:02.000 - INFO - Executing task \x1b[96m'train-qlora'\x1b[0m\n"
    + said("train_qlora", "training: 10/40, loss 0.0515, 1 min 22 s left", **AT)
    + "    something a library printed\n"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def titles() -> dict[str, str]:
    return compiled.from_file(GOLDEN).steps


def shown(output: io.StringIO, titles: dict[str, str], printed: str) -> tuple[str, str, str]:
    """What is on the screen, in the log file, and the last error."""
    on, log = progress.screen(output, titles), io.StringIO()
    lines = runner._Log(log, on)
    lines.write(printed)
    on.close()
    return output.getvalue(), log.getvalue(), lines.last_error


def test_tasks_are_named_in_the_order_they_can_run(titles: dict[str, str]) -> None:
    names = list(titles.values())
    later = ["train", "evaluate-tuned", "merge", "evaluate-merged", "register", "notify"]
    assert names[0] == "plan" and names[3:] == later


def test_a_file_gets_one_line_a_message(titles: dict[str, str]) -> None:
    output, log, _ = shown(io.StringIO(), titles, LOG)
    assert [line.split(maxsplit=2)[2] for line in output.splitlines()] == [
        "plan                  warning: the base is gated",
        "plan                  done in 2 s",
        "train                 training: 10/40, loss 0.0515, 1 min 22 s left",
    ]
    assert "    [plan_run] warning: the base is gated\n    [plan_run] done in 2 s\n" in log
    assert log.endswith(
        "    [train_qlora] training: 10/40, loss 0.0515, 1 min 22 s left\n    something a library printed\n"
    )


def test_a_terminal_gets_all_steps_and_a_bar_for_the_one_at_work(
    titles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    output, _, _ = shown(Terminal(), titles, LOG)
    output = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output)
    last = output[output.rindex("✓") :]
    assert "✓ plan" in last and "▸ train" in last and "· register" in last
    assert "━" in last and "10/40  loss 0.0515, 1 min 22 s left" in last
    assert "warning: the base is gated" in output and "library" not in output


@pytest.mark.parametrize("output", [io.StringIO, Terminal])
def test_an_error_is_kept_for_the_end(output: type[io.StringIO], titles: dict[str, str]) -> None:
    failed = LOG + said("train_qlora", "out of memory", "error") + "Task 'train-qlora' finished with status FAILURE\n"
    screen, log, error = shown(output(), titles, failed)
    assert error == "train_qlora: out of memory" and "out of memory" not in screen
    assert "    [train_qlora] error: out of memory\n" in log
