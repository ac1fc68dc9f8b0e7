"""What came out of a model's whole path, against what plain transformers and peft make of the same files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.data import packing
from qlora_pipelines.components.core.models import loading, lora, packed_attention
from qlora_pipelines.components.core.models.quantization import Quantization

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


def check_adapter(found: Walk, adapter: Path) -> None:
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


def check_merged(
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


def check_packed(found: Walk, base: Path, adapter: Path, samples: list[Any]) -> None:
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
