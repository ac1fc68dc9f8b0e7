"""Tiny models in the quantised forms in which some are published."""

import json
from pathlib import Path
from typing import Any

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def fp8_blocks(folder: Path, rows: int = 32, columns: int = 32) -> None:
    """As DeepSeek V3: each block of a linear layer's weight with a scale; embeddings, head and routers are left."""
    import torch

    def quantise(name: str, weight: Any) -> dict[str, Any]:
        if weight.ndim != 2 or not name.endswith("proj.weight"):
            return {name: weight}
        tall, wide = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
        padded = torch.zeros(tall * rows, wide * columns)
        padded[: weight.shape[0], : weight.shape[1]] = weight.float()
        blocks = padded.view(tall, rows, wide, columns)
        scales = blocks.abs().amax(dim=(1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).view(padded.shape)[: weight.shape[0], : weight.shape[1]]
        return {name: codes.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}

    _rewrite(folder, quantise, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [rows, columns]})


def fp8_rows(folder: Path) -> None:
    """As compressed-tensors with dynamic activations: each row of a linear layer's weight with a scale."""
    import torch

    def quantise(name: str, weight: Any) -> dict[str, Any]:
        if weight.ndim != 2 or not name.endswith("proj.weight"):
            return {name: weight}
        scales = (weight.float().abs().amax(dim=1, keepdim=True) / 448).to(torch.bfloat16)
        return {name: (weight.float() / scales.float()).to(torch.float8_e4m3fn), f"{name}_scale": scales}

    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}
    _rewrite(folder, quantise, {"quant_method": "compressed-tensors", "config_groups": groups})


def fp8_tensors(folder: Path) -> None:
    """As ModelOpt: one scale for a weight, and one for what flows into it."""
    import torch

    def quantise(name: str, weight: Any) -> dict[str, Any]:
        if weight.ndim != 2 or not name.endswith("proj.weight"):
            return {name: weight}
        scale = weight.float().abs().max() / 448
        stem = name.removesuffix("weight")
        codes = (weight.float() / scale).to(torch.float8_e4m3fn)
        return {name: codes, f"{stem}weight_scale": scale, f"{stem}input_scale": torch.tensor(0.5)}

    _rewrite(folder, quantise, {"quant_method": "modelopt", "quant_algo": "FP8"})
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))


def mxfp4(folder: Path) -> None:
    """As gpt-oss: the experts in blocks of 32 values, of which each two are a byte."""
    import torch

    def quantise(name: str, weight: Any) -> dict[str, Any]:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return {name: weight}
        blocks = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
        # The largest value of a block becomes at most 6: 2^2 times 1.5.
        exponents = torch.floor(torch.log2(blocks.abs().amax(-1).clamp(min=2**-100))) - 2
        scaled = blocks / torch.exp2(exponents)[..., None]
        codes = (scaled.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1) + 8 * (scaled < 0)
        pairs = codes.to(torch.uint8).unflatten(-1, (16, 2))
        return {f"{name}_blocks": pairs[..., 0] | pairs[..., 1] << 4, f"{name}_scales": (exponents + 127).byte()}

    _rewrite(folder, quantise, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})


def _rewrite(folder: Path, quantise: Any, described: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= {key: value.contiguous() for key, value in quantise(name, tensor).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": described}))
