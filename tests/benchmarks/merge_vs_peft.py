"""The merge against peft's, in time, memory and faithfulness.

    python -m tests.benchmarks.merge_vs_peft

Time and memory: a random Llama of 1.1 billion parameters in one 2.2 GB file, LoRA of rank 16 on all linear layers. Each
merge is a process of its own, from its start to its end: ours into the 16-bit original and into the dequantised base,
and peft's `merge_and_unload` with `save_pretrained`. Memory is measured on a model of three times the size, too.

Faithfulness: SmolLM2 with the demo's adapter. The distance of logits from those of the adapter on the NF4 base, with
float32 activations on both sides, relative to their norm: of the merge, of an exact merge that is rounded once, and of
peft's merge into the 4-bit base.
"""

import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import MergeConfig
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.models.blockwise_quantization import portable_quantization
from qlora_pipelines.components.core.models.quantization import Quantization, digest
from qlora_pipelines.components.core.registry import integrity, manifest
from qlora_pipelines.components.core.runtime import quiet_libraries
from qlora_pipelines.components.core.store import attempts
from tests.benchmarks import measure as memory
from tests.benchmarks.measure import MODEL

LAYERS, WIDTH, INNER, KEYS, VOCABULARY = 22, 2048, 5632, 256, 32000
REVISION = "random"
MERGE_BASES = ("original", "dequantized")
ROUNDS = 3


def make_base(folder: Path, layers: int) -> dict[str, str]:
    """Writes a random Llama in bfloat16 in one file; every layer holds the same values.

    Returns:
        The digest of each weight in NF4, by parameter, as training records it.
    """
    import bitsandbytes.functional as bnb
    import torch
    from transformers import LlamaConfig

    from qlora_pipelines.components.core.models import safetensors_files

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)
    inside = {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KEYS, WIDTH), "self_attn.v_proj": (KEYS, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER), "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
    }  # fmt: skip
    values = {name: (0.02 * torch.randn(shape)).bfloat16() for name, shape in inside.items()}
    ends = {name: (0.02 * torch.randn(VOCABULARY, WIDTH)).bfloat16() for name in ("model.embed_tokens", "lm_head")}
    ends["model.norm"] = torch.ones(WIDTH, dtype=torch.bfloat16)
    whole = [(f"model.layers.{layer}.{name}", values[name]) for layer in range(layers) for name in values]
    whole += list(ends.items())
    with (folder / "model.safetensors").open("wb") as file:
        file.write(
            safetensors_files.write_header((f"{name}.weight", "BF16", tuple(value.shape)) for name, value in whole)
        )
        for _, value in whole:
            file.write(value.view(torch.uint8).numpy().data)
    with portable_quantization():
        found = {name: digest(*bnb.quantize_4bit(values[name], quant_type="nf4", compress_statistics=True))
                 for name in values if name.endswith("proj")}  # fmt: skip
    return {f"model.layers.{layer}.{name}.weight": found[name] for layer in range(layers) for name in found}


def make_adapter(base: Path, folder: Path, digests: dict[str, str]) -> None:
    """A random LoRA adapter of rank 16 on all linear layers, with training's manifest."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(base))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora, low_cpu_mem_usage=True)
    state = {
        name.replace(".default", ""): 0.02 * torch.randn(parameter.shape)
        for name, parameter in adapted.named_parameters()
        if "lora_" in name
    }
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors")
    adapted.peft_config["default"].save_pretrained(str(folder))
    info = {
        "base_revision": REVISION,
        "training_key": "bench",
        "quantization": dataclasses.asdict(Quantization()),
        "quantised": digests,
    }
    files = {path.name: manifest.entry(path.read_bytes()) for path in sorted(folder.iterdir())}
    attempts.finish(str(folder), info, files)


def ours(base: str, adapter: str, merge_base: str, revision: str = REVISION) -> str:
    """Our merge, into the store of the environment; returns the merged model's folder."""
    from qlora_pipelines.components.dequantize_and_merge import task

    config = MergeConfig.parse({"merge_base": merge_base})
    sha256 = integrity.digest(attempts.read(adapter))
    given = {"base_uri": base, "base_revision": revision, "adapter": adapter, "adapter_digest": sha256}
    merged = task.run(config, merge_key="bench", **given)
    return f"{merged.merged_uri}/model"


def peft(base: str, adapter: str, output: str) -> None:
    """Peft's merge."""
    from peft import PeftModel

    PeftModel.from_pretrained(loading.load_16bit(Path(base)), adapter).merge_and_unload().save_pretrained(output)


def timed(*arguments: str) -> tuple[float, float]:
    """Seconds and peak MiB of one merge in a process of its own."""
    started = time.monotonic()
    _, peak = memory.run([sys.executable, "-m", "tests.benchmarks.merge_vs_peft", *arguments])
    return time.monotonic() - started, peak


def speed_and_memory(scratch: Path) -> dict[str, float]:
    """Time against peft, the median of three rounds in turns, and peaks of memory at two sizes of model."""
    os.environ["QLORA_STORE"] = str(scratch / "store")
    seconds: dict[str, list[float]] = {kind: [] for kind in ("peft", "original", "dequantized")}
    found: dict[str, float] = {}
    for times, rounds in ((1, ROUNDS), (3, 1)):
        base, adapter = scratch / f"base{times}", scratch / f"adapter{times}"
        make_adapter(base, adapter, make_base(base, LAYERS * times))
        ending = "" if times == 1 else "_3x"
        for kind in [kind for _ in range(rounds) for kind in seconds if times == 1 or kind != "peft"]:
            arguments = ["peft", base, adapter, scratch / "peft"] if kind == "peft" else ["ours", base, adapter, kind]
            taken, peak = timed(*map(str, arguments))
            name = f"merge_{kind}_peak_mib{ending}"
            found[name] = max(found.get(name, 0.0), peak)
            if times == 1:
                seconds[kind].append(taken)
            shutil.rmtree(scratch / ("peft" if kind == "peft" else "store"))
        shutil.rmtree(base)
        found[f"merge_peak_mib{ending}"] = max(found[f"merge_{kind}_peak_mib{ending}"] for kind in MERGE_BASES)
    ratios = {
        kind: statistics.median(own / other for own, other in zip(seconds[kind], seconds["peft"], strict=True))
        for kind in MERGE_BASES
    }
    found |= {f"merge_{kind}_s": statistics.median(taken) for kind, taken in seconds.items()}
    return {
        "merge_time_vs_peft": ratios["original"],
        "merge_dequantized_time_vs_peft": ratios["dequantized"],
        **found,
    }


def demo_adapter(scratch: Path) -> tuple[Path, str]:
    """The demo's trained adapter and the revision of its base; one that `make demo` left is taken up."""
    from qlora_pipelines.components.train_qlora import task as train
    from qlora_pipelines.pipelines import run_file
    from tests.benchmarks import demo_run  # here, as the measured processes need nothing of it

    config = run_file.load(Path("pipelines/demo/demo.yaml")).config
    plan, prepared = demo_run.prepare(config, scratch, Path("runs/store"))
    train.run(
        config.for_step("train_qlora"),
        train_set=str(scratch / "train.parquet"),
        dataset_digest=prepared.dataset_digest,
        base_uri=str(MODEL.absolute()),
        base_revision=plan.base_revision,
        training_key=plan.training_key,
        adapter=str(scratch / "demo"),
        report=str(scratch / "training.html"),
    )
    return scratch / "demo", plan.base_revision


def fidelity(adapter: Path, revision: str, scratch: Path) -> dict[str, float]:
    """Relative distances of logits from those of the adapter on the NF4 base."""
    import bitsandbytes as bnb
    import torch
    from peft import PeftModel

    os.environ["QLORA_STORE"] = str(scratch / "store")
    tokenizer = loading.load_tokenizer(MODEL)
    lines = Path("pipelines/demo/tickets_heldout.jsonl").read_text().split("\n")
    rows = [json.loads(line)["messages"] for line in lines[:16]]
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    batches = [tokenizer(text, return_tensors="pt").input_ids for text in texts]

    def in_float32(quantised: Any) -> Any:
        """The same weights in float32 layers: what 4-bit layers compute, without rounding activations."""
        model = loading.load_16bit(MODEL, "float32")
        layers = dict(model.named_modules())
        for name, module in quantised.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                layers[name].weight.data = bnb.functional.dequantize_4bit(
                    module.weight.data, module.weight.quant_state
                ).float()
        return model

    @torch.inference_mode()
    def logits(model: Any) -> Any:
        return torch.cat([model.eval()(ids).logits[0] for ids in batches]).double()

    trained = logits(PeftModel.from_pretrained(in_float32(loading.load_quantized(MODEL)), str(adapter)))
    # An exact merge: all in float32, and each weight rounded once.
    exact = PeftModel.from_pretrained(in_float32(loading.load_quantized(MODEL)), str(adapter)).merge_and_unload()
    for parameter in exact.parameters():
        parameter.data = parameter.data.bfloat16().float()
    in_4bit = PeftModel.from_pretrained(loading.load_quantized(MODEL), str(adapter)).merge_and_unload()
    merged = Path(ours(str(MODEL), str(adapter), "dequantized", revision))
    subjects = {
        "merge_fidelity": loading.load_16bit(merged, "float32"),
        "merge_fidelity_exact": exact,
        "merge_fidelity_peft_4bit": in_float32(in_4bit),
        "merge_fidelity_original": loading.load_16bit(
            Path(ours(str(MODEL), str(adapter), "original", revision)), "float32"
        ),
    }
    found = {name: float((logits(model) - trained).norm() / trained.norm()) for name, model in subjects.items()}
    found["merge_fidelity_vs_exact"] = found["merge_fidelity"] / found["merge_fidelity_exact"]
    found["merge_fidelity_vs_peft_4bit"] = found["merge_fidelity"] / found["merge_fidelity_peft_4bit"]
    return found


def measure() -> dict[str, float]:
    """All figures; the ratios are ours to theirs."""
    before = dict(os.environ)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            found = speed_and_memory(Path(scratch))
            adapter, revision = demo_adapter(Path(scratch))
            return found | fidelity(adapter, revision, Path(scratch))
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    quiet_libraries()
    match sys.argv[1:]:
        case ["ours", base, adapter, kind]:
            ours(base, adapter, kind)
        case ["peft", base, adapter, output]:
            peft(base, adapter, output)
        case _:
            print(json.dumps(measure(), indent=1))
