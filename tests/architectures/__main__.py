"""Walks through architectures and writes what came of them into the table: python -m tests.architectures [NAME ...].

Each is walked in a process of its own that is forked from this one, so that libraries are imported once.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from qlora_pipelines.components.core.runtime import load_libraries, quiet_libraries
from tests.architectures import whole_path

TABLE = Path(whole_path.__file__).parent / "expected.json"


def one(name: str) -> whole_path.Walk:
    """One architecture, in a folder of its own."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QLORA_STORE"] = f"{folder}/store"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        return whole_path.walk(name, Path(folder))


def main(names: list[str]) -> int:
    """Walks through `names`, or all of the table; returns 1 where one is wrong."""
    quiet_libraries()
    load_libraries("trl.trainer.sft_trainer", "mlflow", "bitsandbytes", "transformers.conversion_mapping")
    found, wrong = dict(whole_path.EXPECTED), 0
    for name in names or [name for name, known in found.items() if known["outcome"] != "not tried"]:
        began = time.monotonic()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            walked = pool.apply(one, [name])
        wrong += bool(walked.wrong)
        print(
            f"{name}: {walked.outcome}, {time.monotonic() - began:.0f} s {walked.refused or walked.wrong or ''}",
            flush=True,
        )
        if not walked.wrong:
            found[name] = walked.as_expected() | {"distance": float(f"{walked.distance:.0e}")}
            TABLE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
