"""Proves that an image can do its work; prints what is in it.

docker run --rm -i IMAGE python - <images/smoke.py
"""

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import bitsandbytes
import torch

from qlora_pipelines import components

cuda = torch.version.cuda
library = f"libbitsandbytes_cuda{cuda.replace('.', '')}.so" if cuda else "libbitsandbytes_cpu.so"
assert (Path(bitsandbytes.__file__).parent / library).is_file(), f"bitsandbytes ships no {library}"
weights = torch.randn(64, 64)
codes, state = bitsandbytes.functional.quantize_4bit(weights, quant_type="nf4")
error = (bitsandbytes.functional.dequantize_4bit(codes, state) - weights).abs().mean().item()
assert error < 0.1, f"4-bit weights are off by {error}"

executor = [sys.executable, "-m", "kfp.dsl.executor_main", "--help"]
subprocess.run(executor, env=os.environ | {"_KFP_RUNTIME": "true"}, check=True, stdout=subprocess.DEVNULL)
steps = sorted(path.parent.name for path in Path(components.__file__).parent.glob("*/task.py"))
for step in steps:
    importlib.import_module(f"qlora_pipelines.components.{step}.task")
subprocess.run(["qlora", "step", "--help"], check=True, stdout=subprocess.DEVNULL)
if not cuda:  # the chart's MLflow server
    for name in ("psycopg", "flask_wtf"):
        importlib.import_module(name)
assert os.getuid() != 0, "runs as root"
for folder in (Path.home(), Path(os.environ["HF_HOME"]), Path(os.environ["TRITON_CACHE_DIR"])):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe").write_text("")
    (folder / "probe").unlink()

names = ("qlora-pipelines", "torch", "bitsandbytes", "kfp")
found = {name: version(name) for name in names}
print(json.dumps(found | {"cuda": cuda or "", "library": library, "user": os.getuid(), "steps": steps}))
