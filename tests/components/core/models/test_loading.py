"""Loading in 4 bit: the bytes are those that the merge computes, and the model is bitsandbytes' within rounding."""

import contextlib
import itertools
import os
import subprocess
from pathlib import Path

import pytest

from qlora_pipelines.components.core.models import loading, quantization
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.dequantize_and_merge.requantization import QuantizedWeight

KINDS = [Quantization(*kind) for kind in itertools.product(("nf4", "fp4"), (True, False), ("bfloat16", "float16"))]


@pytest.mark.parametrize("for_sharding", [False, True], ids=["whole", "for sharding"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_bytes_are_those_that_the_merge_computes(kind: Quantization, for_sharding: bool, tiny_model: Path) -> None:
    """From the 16-bit weights on, and back to the values that the products see."""
    import bitsandbytes.functional as bnb
    import torch

    model = loading.load_quantized(tiny_model, kind, for_sharding)
    base = loading.load_16bit(tiny_model, kind.compute_dtype)
    digests = quantization.digests(model)
    assert len(digests) == 14
    for name, digest in digests.items():
        weight, held = base.get_parameter(name).detach(), model.get_parameter(name)
        merged = QuantizedWeight([weight.flatten()], tuple(weight.shape), kind)
        assert merged.match_digest(digest)
        seen = bnb.dequantize_4bit(held.data.view(torch.uint8), held.quant_state)
        assert torch.equal(merged.rows(0, len(weight)), seen)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_model_is_bitsandbytes_own_within_the_rounding_to_4_bit(
    kind: Quantization, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    torch.manual_seed(0)
    ids = torch.randint(0, 300, (4, 64))
    ours = loading.load_quantized(tiny_model, kind)
    base = loading.load_16bit(tiny_model, kind.compute_dtype)
    monkeypatch.setattr(loading, "portable_quantization", contextlib.nullcontext)
    theirs = loading.load_quantized(tiny_model, kind)
    with torch.inference_mode():
        (loss, logits), (their_loss, their_logits), (_, exact) = (
            (found.loss, found.logits.float())
            for found in (model.eval()(ids, labels=ids) for model in (ours, theirs, base))
        )
    assert (logits - their_logits).norm() <= 0.1 * (their_logits - exact).norm()
    assert abs(loss - their_loss) < 1e-3


def test_hidden_gpus_are_used_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node may show its GPUs to a pod that asked for none."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(loading.VISIBLE_GPUS, "3")
    assert loading.device() == "cuda:0"
    with loading.hidden_gpus(False):
        assert loading.on_gpu()
    with loading.hidden_gpus(True):
        assert loading.device() == "cpu" and not loading.on_gpu()
        seen = subprocess.run(["printenv", "CUDA_VISIBLE_DEVICES"], capture_output=True, text=True, check=True)
        assert seen.stdout == "\n"
    assert os.environ[loading.VISIBLE_GPUS] == "3"
