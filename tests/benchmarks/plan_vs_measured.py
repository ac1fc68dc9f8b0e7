"""What plan_run says a training process needs on this machine, against what it takes: the demo's run, twelve steps.

    python -m tests.benchmarks.plan_vs_measured ['{"batch_tokens": 2048}']

The options of train_qlora are the demo's own, or those given. It needs the demo's model under runs/models, where `make
demo` puts it.
"""

import json
import sys
import tempfile
from pathlib import Path

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import tokenized
from qlora_pipelines.components.plan_run import fit, host_memory
from qlora_pipelines.pipelines import run_file
from tests.benchmarks import demo_run
from tests.benchmarks import measure as memory

DEMO = Path("pipelines/demo/demo.yaml")
STEPS = 12
MIB = 1 << 20


def compare(**changed: object) -> dict[str, float]:
    """Predicted and measured peak of `qlora step train_qlora`, in MiB, and the first over the second.

    Args:
        **changed: options of train_qlora, in place of the demo's.
    """
    config = run_file.load(DEMO).config
    options = {**config.options, "train_qlora": config.options["train_qlora"] | {"max_steps": STEPS} | changed}
    config = RunConfig.parse(**config.model_dump() | {"options": options})
    train = config.for_step("train_qlora")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan, data = demo_run.prepare(config, folder, folder / "store")
        samples = [sample.encoded for sample in tokenized.read(str(folder / "train.parquet"), data.dataset_digest)]
        share = sum(item.supervised for item in samples) / sum(len(item.input_ids) for item in samples)
        given = {
            "train-set": folder / "train.parquet",
            "dataset-digest": data.dataset_digest,
            "base-uri": config.base_model,
            "base-revision": plan.base_revision,
            "training-key": plan.training_key,
            "adapter": folder / "adapter",
            "report": folder / "training.html",
        }
        command = [str(Path(sys.executable).parent / "qlora"), "step", "train_qlora"]
        command += [f"--{name}={value}" for name, value in given.items()]
        for option in ("max_steps", "batch_tokens", "lora_r", "gradient_checkpointing"):
            command += [f"--{option.replace('_', '-')}", str(getattr(train, option))]
        _, measured = memory.run(command)
    predicted = host_memory.peak(fit.plan(Path(config.base_model), train, config.max_length), share) / MIB
    return {"plan_peak_mib": predicted, "measured_peak_mib": measured, "plan_vs_measured": predicted / measured}


def measure() -> dict[str, float]:
    """The figures of the demo's own run."""
    return compare()


if __name__ == "__main__":
    print(json.dumps(compare(**json.loads(sys.argv[1] if sys.argv[1:] else "{}"))))
