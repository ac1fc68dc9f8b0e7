"""What is learnt from the same supervised tokens: train_qlora against TRL's trainer, three seeds each.

    python -m tests.benchmarks.quality_vs_trl

One epoch of the same 160 rows with the same options, so the same supervised tokens; then the loss on 100 others, each
alone and with all logits, by the same plain code. TRL packs and does not checkpoint gradients, as where it is fastest,
so a step sees as many tokens. `ours_bf16` is train_qlora with the adapter in bfloat16, as TRL has it. BENCH_DATA names
rows to take instead of the demo's.
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from peft.helpers import disable_input_dtype_casting
from transformers import set_seed

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.data import packing
from qlora_pipelines.components.core.runtime import quiet_libraries
from tests.benchmarks import measure as memory
from tests.benchmarks import rows
from tests.benchmarks.train_vs_trl import BEST, MAX_LENGTH, our_trainer, trl_trainer

SEEDS = (0, 1, 2)
ROWS, HELD_OUT = 160, 100


def ours(seed: int, dtype: str) -> tuple[float, int]:
    """Loss on the other rows, and the supervised tokens trained on."""
    import torch

    trainer = our_trainer(ROWS, max_steps=0, seed=seed)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, dtype))
    with disable_input_dtype_casting(trainer.model):
        trainer.train()
    return held_out_loss(trainer.model), trainer.supervised_tokens


def trl(seed: int) -> tuple[float, int]:
    """The same of TRL's trainer."""
    options = TrainConfig()
    set_seed(seed)
    steps = len(packing.rows(rows.encoded(0, ROWS, MAX_LENGTH), 1024))
    settings = {
        "max_steps": -1,
        "num_train_epochs": 1,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": options.lr_scheduler_type,
        "warmup_steps": math.ceil(options.warmup_steps * steps),
        "max_grad_norm": options.max_grad_norm,
        "optim": "adamw_torch",
        "seed": seed,
    }
    trainer, seen = trl_trainer(ROWS, **BEST | settings)
    trainer.train()
    return held_out_loss(trainer.model), sum(seen)


def held_out_loss(model: Any) -> float:
    """Mean loss over the supervised tokens of the rows behind those trained on, in nats a token."""
    import torch

    model.eval()
    model.set_attn_implementation("sdpa")
    total = count = 0.0
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        for item in rows.encoded(ROWS, HELD_OUT, MAX_LENGTH):
            ids, labels = (torch.tensor([row], device=model.device) for row in (item.input_ids, item.labels))
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum").item()
            count += item.supervised
    return total / count


VARIANTS = {"ours": lambda seed: ours(seed, "float32"), "ours_bf16": lambda seed: ours(seed, "bfloat16"), "trl": trl}


def measure() -> dict[str, float]:
    """Mean loss of each, the spread (largest minus smallest) of TRL's, and the distance from it in such spreads."""
    found = {}
    for name in VARIANTS:
        for seed in SEEDS:
            command = [sys.executable, "-m", "tests.benchmarks.quality_vs_trl", name, str(seed)]
            loss, supervised = memory.run(command)[0].split()[-2:]
            found[name, seed] = float(loss)
            print(f"{name}, seed {seed}: loss {float(loss):.4f} after {supervised} supervised tokens", flush=True)
    return summary(found)


def summary(losses: dict[tuple[str, int], float]) -> dict[str, float]:
    """The figures, from the loss of each variant and seed."""
    by_name = {name: [losses[name, seed] for seed in SEEDS] for name in VARIANTS}
    means = {name: statistics.mean(values) for name, values in by_name.items()}
    spreads = {name: max(values) - min(values) for name, values in by_name.items()}
    return {
        **{f"quality_{name}_loss": value for name, value in means.items()},
        **{f"quality_{name}_spread": value for name, value in spreads.items()},
        "quality_gap_in_spreads": (means["ours"] - means["trl"]) / spreads["trl"],
    }


def main() -> None:
    """Measures all; writes dist/bench-quality.json."""
    target = Path("dist/bench-quality.json")
    figures = json.dumps(measure(), indent=1)
    target.parent.mkdir(exist_ok=True)
    target.write_text(figures + "\n")
    print(figures)


if __name__ == "__main__":
    quiet_libraries()
    if len(sys.argv) > 1:
        print(*VARIANTS[sys.argv[1]](int(sys.argv[2])))
    else:
        main()
