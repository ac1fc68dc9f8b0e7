"""Models in 16 bit, of any size: whole on the GPU, or spread over GPU, main memory and disk."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.runtime import log

ROOM = 0.8
"""Share of free memory that weights may take; the rest is for activations and logits."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use (cgroup v2)."""


@contextlib.contextmanager
def whole_or_spread(folder: Path, memory: dict[Any, int] | None = None) -> Iterator[tuple[Any, bool]]:
    """A model in 16 bit, and whether it is whole on its device.

    What does not fit the GPU is spread over GPU, main memory and disk by accelerate: slow, but it scores.

    Args:
        folder: the model's.
        memory: bytes by device, as accelerate takes them, to spread over; None: the whole GPU, where it fits.
    """
    import torch

    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if memory is None and torch.cuda.is_available() and size > ROOM * torch.cuda.mem_get_info()[0]:
        memory = {0: int(ROOM * torch.cuda.mem_get_info()[0]), "cpu": int(ROOM * main_memory())}
    if memory is None:
        yield loading.load_16bit(folder), True
        return
    log(f"{size / 2**30:.1f} GiB do not fit the GPU: the model is spread over main memory and disk, and only scored")
    with tempfile.TemporaryDirectory() as disk:
        yield loading.load_16bit(folder, device_map="auto", max_memory=memory, offload_folder=disk), False


def can_be_spread(adapter: str) -> bool:
    """Whether an adapter can be put on a spread model: plain LoRA can; DoRA and whole modules look at its weights."""
    return all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in _weights(adapter))


def attach(model: Any, adapter: str, whole: bool) -> Any:
    """A model with an adapter on it, in eval mode.

    Args:
        model: as `whole_or_spread` gives it.
        adapter: folder of the adapter.
        whole: whether the model is on one device.
    """
    from accelerate.utils import set_module_tensor_to_device
    from peft import PeftConfig, PeftModel, get_peft_model

    if whole:
        return PeftModel.from_pretrained(model, adapter).eval()
    # peft would spread the model anew, and cannot where weights lie on disk. A layer's weight is brought to the device
    # for the layer's own forward pass only, so the adapter's are put there to stay.
    adapted = get_peft_model(model, PeftConfig.from_pretrained(adapter), low_cpu_mem_usage=True)
    for name, values in _weights(adapter).items():
        place = name.removesuffix(".weight") + ".default.weight"
        set_module_tensor_to_device(adapted, place, loading.device(), values, dtype=values.dtype)
    return adapted.eval()


def _weights(adapter: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    weights: dict[str, Any] = load_file(Path(adapter, "adapter_model.safetensors"))
    return weights


def main_memory() -> int:
    """Bytes of main memory that this process may still take: what the machine has left, or its container."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or `max`: one without a limit
        return free
    return min(free, max(0, limit - used + int(kept["file"])))  # what is kept of files is given up when needed
