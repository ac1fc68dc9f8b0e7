"""Models in 16 bit, of any size: whole on the GPU, or offloaded to main memory and disk."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.models import loading, lora
from qlora_pipelines.components.core.runtime import log

WEIGHT_SHARE = 0.8
"""Share of free memory that weights may take; the rest is for activations and logits."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use (cgroup v2)."""


@contextlib.contextmanager
def load_16bit(folder: Path, max_memory: dict[Any, int] | None = None) -> Iterator[tuple[Any, bool]]:
    """A model in 16 bit, and whether parts of it are offloaded.

    What does not fit the GPU is offloaded to main memory and disk by accelerate: slow, but it can be scored.

    Args:
        folder: the model's.
        max_memory: bytes by device, as accelerate takes them, to offload beyond; None: the whole GPU, where it fits.
    """
    import torch

    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if max_memory is None and loading.on_gpu():
        room = int(WEIGHT_SHARE * torch.cuda.mem_get_info()[0])
        if size > room:
            max_memory = {0: room, "cpu": int(WEIGHT_SHARE * free_memory())}
    if max_memory is None:
        yield loading.load_16bit(folder), False
        return
    log(f"{size / 2**30:.1f} GiB do not fit the GPU: the model is offloaded to main memory and disk, and only scored")
    with tempfile.TemporaryDirectory() as disk:
        yield loading.load_16bit(folder, device_map="auto", max_memory=max_memory, offload_folder=disk), True


def can_attach(adapter: str) -> bool:
    """Whether an adapter can be put on an offloaded model: plain LoRA can; DoRA and whole modules read its weights."""
    return all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in _weights(adapter))


def attach(model: Any, adapter: str, offloaded: bool) -> Any:
    """A model with an adapter on it, in eval mode.

    Args:
        model: as `load_16bit` gives it.
        adapter: folder of the adapter.
        offloaded: whether parts of the model are offloaded.
    """
    from accelerate.utils import set_module_tensor_to_device
    from peft import PeftConfig

    if not offloaded:
        return lora.load(model, adapter).eval()
    # peft would dispatch the model again, and cannot where weights are on disk. accelerate brings a layer's weight to
    # the device for that layer's forward pass only, so the adapter's weights are put there to stay.
    adapted = lora.put_on(model, PeftConfig.from_pretrained(adapter), low_cpu_mem_usage=True)
    for name, values in _weights(adapter).items():
        target = name.removesuffix(".weight") + ".default.weight"
        set_module_tensor_to_device(adapted, target, loading.device(), values, dtype=values.dtype)
    return adapted.eval()


def _weights(adapter: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    weights: dict[str, Any] = load_file(Path(adapter, "adapter_model.safetensors"))
    return weights


def free_memory() -> int:
    """Bytes of main memory that this process may still take: what the machine has left, or its container."""
    lines = Path("/proc/meminfo").read_text().split("\n")
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    limit = CGROUP / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":  # no container, or one without a limit
        return free
    used = int((CGROUP / "memory.current").read_text())
    pages = dict(line.split() for line in (CGROUP / "memory.stat").read_text().strip().split("\n"))
    # The kernel drops cached pages of files when memory is needed, though it counts them as used.
    return min(free, max(0, int(limit.read_text()) - used + int(pages["file"])))
