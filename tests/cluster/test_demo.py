"""The demo's run in pods, on a real model: fine-tuned, judged, merged, registered, pulled, and asked a ticket."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

from tests.cluster.conftest import Installed
from tests.cluster.kube import ROOT
from tests.cluster.test_runs import STEPS, task_states

DEMO = ROOT / "pipelines" / "demo"
TICKET = "Search has been returning outdated results since this morning, 12 people at Acme noticed. Please investigate."


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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "pulled" / "model"
    tokenizer, asked = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "Turn the support ticket into JSON."},
        {"role": "user", "content": TICKET},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = asked.generate(**prompt, max_new_tokens=80, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    answer = json.loads(tokenizer.decode(tokens, skip_special_tokens=True))
    print(TICKET, answer)
    assert answer["component"] == "search" and answer["company"] == "Acme" and answer["affected_users"] == 12
