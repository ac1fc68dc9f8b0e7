"""The whole path of one tiny model: planned, prepared, trained, judged, merged both ways, judged again, loaded plainly.

What came out is compared with what plain transformers and peft make of the same files, one conversation at a time.
"""

import dataclasses
import json
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.data import packing, tokenized
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, lora, packed_attention
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.store import storage
from tests.architectures import tiny
from tests.components.conftest import digest

EXPECTED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "expected.json").read_text())
"""What each entry of `tiny` comes to; `python -m tests.architectures NAME...` writes it anew."""
ROUNDING = 0.02
"""Nats a token by which scores may differ from those of plain transformers, in bfloat16."""


@dataclasses.dataclass
class Walk:
    """What became of one model. `refused` is the plan's line; `wrong` lists what is not as it must be; empty: right."""

    name: str
    made: str = ""
    packed: bool = False
    refused: str = ""
    wrong: list[str] = dataclasses.field(default_factory=list)
    adapted: int = 0
    distance: float = 0.0

    @property
    def outcome(self) -> str:
        """`right packed`, `right alone`, `refused` or `wrong`."""
        if self.refused:
            return "refused"
        return "wrong" if self.wrong else "right packed" if self.packed else "right alone"

    def as_expected(self) -> dict[str, Any]:
        """This result as the table has it."""
        return {
            "class": self.made,
            "outcome": self.outcome,
            "line": self.refused,
        }


def expected(name: str) -> dict[str, Any]:
    """What the table says of an entry, apart from the distance, which is measured and not held."""
    return {key: value for key, value in EXPECTED[name].items() if key != "distance"}


def walk(name: str, folder: Path, publish: Callable[[Path], None] = lambda _: None) -> Walk:
    """The whole path of one architecture; nothing is raised.

    Args:
        name: an entry of `tiny`.
        folder: an empty one; the environment names a store in it, and MLflow's.
        publish: changes the model's files, as its authors may have published it.
    """
    found = Walk(name)
    try:
        found.made = tiny.save_model(name, folder / "base")
        publish(folder / "base")
    except Exception as error:
        found.wrong.append(f"not made: {_line(error)}")
        return found
    try:
        _go(found, folder)
    except Exception as error:
        if "VERBOSE" in os.environ:
            traceback.print_exc()
        found.wrong.append(_line(error))
    return found


def _line(error: BaseException) -> str:
    """A refusal's own words; of anything else also where in the product it came from."""
    if isinstance(error, InputError):
        return f"refused late: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    ours = [place for place, frame in zip(places, frames, strict=True) if "/components/" in frame.filename]
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {text} at {(ours or ['?'])[-1]} <- {places[-1]}"


def _go(found: Walk, folder: Path) -> None:
    from qlora_pipelines.components.dequantize_and_merge import task as merge
    from qlora_pipelines.components.evaluate_model import task as evaluate
    from qlora_pipelines.components.plan_run import task as plan_run
    from qlora_pipelines.components.prepare_dataset import task as prepare
    from qlora_pipelines.components.stage_base_model import task as stage
    from qlora_pipelines.components.train_qlora import task as train

    base = folder / "base"
    config = PlacedRun(
        base_model=str(base),
        dataset_uri=str(tiny.save_rows(folder / "rows.jsonl")),
        model_name=f"tiny-{found.name}".replace(".", "-"),
        max_length=128,
        learning_rate=0.01,
        lora_r=8,
        gpu_count="0",
        options={
            "prepare_dataset": {"eval_share": 0.25, "near_duplicate_threshold": 0},
            "train_qlora": {"max_steps": 8, "batch_tokens": 256, "max_restarts": 0},
            "evaluate_model": {"generation_rows": 2, "max_new_tokens": 4, "swapped_rows": 4},
        },
    )
    try:
        plan = plan_run.run(config, report=str(folder / "plan.html"))
    except InputError as error:
        found.refused = str(error).replace(f"{folder}/", "")
        return
    staged = stage.run(stage.Config(base_model=str(base), base_revision=plan.base_revision))
    base = Path(staged.base_uri)
    prepared = prepare.run(
        prepare.Config.parse(plan.prepare_options, max_length=128),
        listing_uri=plan.listing_uri,
        tokenizer_uri=plan.tokenizer_uri,
        train_set=str(folder / "train.parquet"),
        eval_set=str(folder / "eval.parquet"),
        rejected=str(folder / "rejected.jsonl"),
        report=str(folder / "data.html"),
    )
    typed = {key: getattr(config, key) for key in ("learning_rate", "lora_r")}
    training = train.Config.parse(plan.train_options, **typed)
    found.packed = training.packing is True
    train.run(
        training,
        train_set=str(folder / "train.parquet"),
        dataset_digest=prepared.dataset_digest,
        base_uri=str(base),
        base_revision=plan.base_revision,
        training_key=plan.training_key,
        adapter=str(folder / "adapter"),
        report=str(folder / "training.html"),
    )
    _check_adapter(found, folder / "adapter")
    judged = evaluate.Config.parse(plan.evaluate_options)
    common: dict[str, Any] = {
        "eval_set": str(folder / "eval.parquet"),
        "dataset_digest": prepared.dataset_digest,
        "base_uri": str(base),
    }
    tuned = evaluate.run(
        judged,
        **common,
        adapter=str(folder / "adapter"),
        adapter_digest=digest(folder / "adapter"),
        scores=str(folder / "scores"),
        report=str(folder / "evaluation.html"),
    )
    if not tuned.loss < tuned.reference_loss:
        found.wrong.append(f"the loss does not fall: {tuned.reference_loss:.3f} to {tuned.loss:.3f}")
    merged = {}
    for kind in ("dequantized", "original"):
        made = merge.run(
            merge.Config(merge_base=kind),
            base_uri=str(base),
            base_revision=plan.base_revision,
            adapter=str(folder / "adapter"),
            adapter_digest=digest(folder / "adapter"),
            merge_key=f"{plan.merge_key}{kind}",
        )
        merged[kind] = Path(storage.local_path(made.merged_uri))
    evaluate.run(
        judged,
        **common,
        merged_uri=str(merged["dequantized"]),
        merged_digest=digest(merged["dequantized"]),
        adapter_scores=str(folder / "scores"),
        scores=str(folder / "scores of the merged"),
        report=str(folder / "evaluation of the merged.html"),
    )
    samples = [s.encoded for s in tokenized.read(str(folder / "eval.parquet"), prepared.dataset_digest)]
    for kind, place in merged.items():
        _check_merged(found, kind, base, folder / "adapter", place / "model", samples, tuned.loss)
    if found.packed:
        training_samples = [s.encoded for s in tokenized.read(str(folder / "train.parquet"), prepared.dataset_digest)]
        _check_packed(found, base, folder / "adapter", training_samples[:12])


def _check_adapter(found: Walk, adapter: Path) -> None:
    """Every tensor of the adapter has moved: B from 0, and A from where it began is shown by B's gradient."""
    from safetensors.torch import load_file

    weights = load_file(adapter / "adapter_model.safetensors")
    dead = sorted(name for name, values in weights.items() if ".lora_B." in name and not values.any())
    found.adapted = sum(".lora_A." in name for name in weights)
    if dead:
        found.wrong.append(f"{len(dead)} of {found.adapted} adapters have not moved: {dead[:3]}")


def _alone(model: Any, samples: list[Any]) -> Any:
    """Logits of every conversation by itself, through the model's own attention."""
    import torch

    with torch.no_grad():
        return torch.cat(
            [model(input_ids=torch.tensor([s.input_ids]), use_cache=False).logits[0].float() for s in samples]
        )


def _adapted(base: Path, adapter: Path, kind: str) -> Any:
    loaded = loading.load_quantized(base, Quantization()) if kind == "dequantized" else loading.load_16bit(base)
    return lora.load(loaded.eval(), str(adapter)).eval()


def _check_merged(
    found: Walk, kind: str, base: Path, adapter: Path, merged: Path, samples: list[Any], loss: float
) -> None:
    """The merged files, tensor by tensor, against base and adapter; and their logits against the two together."""
    import torch

    model, info = loading.load_16bit(merged, output_loading_info=True)
    for key, names in info.items():
        if names:
            found.wrong.append(f"{kind}, loaded: {key} {sorted(map(str, names))[:3]}")
    reference = _adapted(base, adapter, kind)
    own = dict(model.named_parameters(remove_duplicate=False))
    off = [name for name, want in _expected(reference) if name not in own or not torch.equal(own[name], want)]
    if off:
        found.wrong.append(f"{kind}: {len(off)} tensors are not base plus adapter: {off[:3]}")
    together, apart = _alone(reference, samples), _alone(model.eval(), samples)
    _check_text_class(found, kind, merged, model, samples, apart)
    if kind == "dequantized":
        found.distance = _divergence(together, apart)
        labels = torch.cat([torch.tensor([*s.labels[1:], -100]) for s in samples])
        plain = float(torch.nn.functional.cross_entropy(together, labels, ignore_index=-100))
        noise = 5 if _has_experts(model) else 1  # rounding sends tokens to other experts
        if abs(plain - loss) > ROUNDING * noise:
            found.wrong.append(f"scored {loss:.4f}, and plain transformers gives {plain:.4f}")


def _check_text_class(found: Walk, kind: str, merged: Path, model: Any, samples: list[Any], whole: Any) -> None:
    """A model that takes images too, as transformers loads it for text alone, where it has a class for that."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto import modeling_auto

    named = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.config.model_type)
    if named in (None, type(model).__name__):
        return
    text, info = AutoModelForCausalLM.from_pretrained(merged, dtype=model.dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        found.wrong.append(f"{kind}, loaded for text alone: {missing[:3]} are missing")
    if not torch.equal(_alone(text.eval(), samples), whole):
        found.wrong.append(f"{kind}, loaded for text alone: other logits than of the whole model")


def _has_experts(model: Any) -> bool:
    return any("expert" in name for name, _ in model.named_modules())


def _divergence(one: Any, other: Any) -> float:
    """Mean of KL(one || other) over the tokens, in nats."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def _expected(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Every parameter of the merged model: W + s B A in float32, rounded once; or W as it was."""
    import bitsandbytes as bnb
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    for name, module in adapted.get_base_model().named_modules():
        if ".base_layer" in f".{name}" or ".lora_" in f".{name}":
            continue
        layer = module.base_layer if isinstance(module, LoraLayer) else module
        for key, parameter in layer.named_parameters(recurse=False):
            value = parameter.data
            if isinstance(layer, bnb.nn.Linear4bit) and key == "weight":
                value = bnb.functional.dequantize_4bit(value, parameter.quant_state)
            if layer is not module and key == "weight":
                a, b = module.lora_A["default"].weight.data.float(), module.lora_B["default"].weight.data.float()
                value = value.T if isinstance(layer, Conv1D) else value
                value = (b @ a).mul_(module.scaling["default"]).add_(value).to(value.dtype)
            if key == "weight" and issubclass(getattr(layer, "source_cls", type(layer)), Conv1D):
                value = value.T  # files and plain models hold it as (in, out)
            yield f"{name}.{key}".lstrip("."), value


def _check_packed(found: Walk, base: Path, adapter: Path, samples: list[Any]) -> None:
    """Packed rows give each conversation the logits that it has alone."""
    import torch

    model = _adapted(base, adapter, "dequantized").get_base_model()
    rows = [[samples[index] for index in row] for row in packing.pack([len(s.input_ids) for s in samples], 256)]
    want = _alone(model, [sample for row in rows for sample in row])
    packed_attention.enable(model)
    got = []
    with torch.no_grad():
        for row in rows:
            inputs = {key: value for key, value in packing.collate([packing.joined(row)]).items() if key != "labels"}
            got.append(model(**inputs, use_cache=False).logits[0].float())
    distance = _divergence(want, torch.cat(got))
    if distance > (0.05 if _has_experts(model) else 0.01):
        found.wrong.append(f"packed conversations are {distance:.3f} nats from those alone")
