"""The demo's run in pods, on a real model: fine-tuned, judged, merged, registered, pulled, and asked tickets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.conftest import Installed
from tests.cluster.kube import ROOT
from tests.cluster.test_runs import STEPS, task_states

DEMO = ROOT / "pipelines" / "demo"
ASKED = 10
"""Tickets that the pulled model is asked."""


def test_the_demo_ends_with_a_model_that_answers(installed: Installed, tmp_path: Path) -> None:
    model = ROOT / "runs" / "models" / "SmolLM2-135M-Instruct"
    fetch = [sys.executable, "-m", "qlora_pipelines.pipelines.demo.fetch_model", str(model)]
    subprocess.run(fetch, check=True)
    for name in ("train", "heldout"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tickets.jsonl").write_bytes((DEMO / f"tickets_{name}.jsonl").read_bytes())
    values = yaml.safe_load((DEMO / "demo.yaml").read_text()) | {
        "base_model": installed.upload(model, "smollm2"),
        "dataset_uri": installed.upload(tmp_path / "train", "tickets-train"),
        "eval_dataset_uri": installed.upload(tmp_path / "heldout", "tickets-heldout"),
        "gpu_count": "0",
        "cpu": "1",
        "memory": "8Gi",
    }
    ended = installed.submit(values, tmp_path)
    assert ended["code"] == 0, ended["log"]
    states = task_states(installed, ended["run_id"])
    assert set(states.values()) == {"SUCCEEDED"}, states
    assert set(ended["steps"]) == STEPS
    print(ended["log"], json.dumps(states, indent=1))

    pulled = installed.qlora("pull", "models:/ticket-parser@champion", "--to", str(tmp_path / "pulled"))
    assert pulled.returncode == 0, pulled.stderr
    rows = [json.loads(line)["messages"] for line in (DEMO / "tickets_heldout.jsonl").read_text().splitlines()[:ASKED]]
    right = sum(_answer(tmp_path / "pulled" / "model", row[:-1]) == json.loads(row[-1]["content"]) for row in rows)
    print(f"{right} of {ASKED} tickets right")
    # It answers 88 % of the 60 tickets right, so one alone would fail the test now and then, and half of them never.
    assert right > ASKED / 2


def _answer(folder: Path, messages: list[dict[str, str]]) -> Any:
    """What the model says, as JSON; None where it is none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=80, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    try:
        return json.loads(tokenizer.decode(tokens, skip_special_tokens=True))
    except ValueError:
        return None
