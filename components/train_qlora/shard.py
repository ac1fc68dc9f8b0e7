"""A base too large for one GPU, cut over those of all processes: PyTorch's FSDP, each layer whole only in use.

Accelerate knows FSDP on GPUs only, and has it cast everything to the storage's dtype, the rotary embedding's
frequencies too. So the model is wrapped here, on a GPU as on a CPU, and accelerate is told of it. It is FSDP's first
version: with the second, 4-bit weights lose their state and change (bitsandbytes-foundation/bitsandbytes, 1945).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.train_qlora import launch


def announce(trainer: Any) -> None:
    """Tells a trainer that its model will be cut, so that it clips and steps as FSDP needs it."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    for shared in (PartialState(), state):  # the second is filled from the first whenever it is asked for
        shared.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    trainer.is_fsdp_enabled = True


def cut(model: Any) -> Any:
    """A model with an adapter, cut over all processes: a decoder layer a piece, each matrix of the adapter for itself.

    Args:
        model: on the host, its 4-bit weights stored in a floating dtype, as FSDP wants it.
    """
    import torch
    from peft.utils.other import fsdp_auto_wrap_policy
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=fsdp_auto_wrap_policy(model),
        device_id=torch.device(loading.device()),
        use_orig_params=False,
    )


def adapter(model: Any) -> dict[str, Any]:
    """The adapter's whole weights, on the host, named as peft names them in a file; all processes call it."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = {}
    for name, unit in _trained(model):
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            for own, parameter in unit.module.named_parameters():
                found[f"{name}.{own}".replace(".default.", ".")] = parameter.detach().cpu().clone()
    return found


def save(trainer: Any, folder: str) -> None:
    """Writes this process' part of adapter and optimiser: exact, and resumed by as many processes only."""
    import torch

    parts = [parameter.detach() for parameter in trainer.model.parameters() if parameter.requires_grad]
    torch.save({"adapter": parts, "optimizer": trainer.optimizer.state_dict()}, _file(folder))


def restore(trainer: Any, folder: str) -> None:
    """Reads back what `save` wrote."""
    import torch

    saved = torch.load(_file(folder), map_location=loading.device(), weights_only=True)
    wanted = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    for parameter, value in zip(wanted, saved["adapter"], strict=True):
        parameter.data.copy_(value)
    trainer.optimizer.load_state_dict(saved["optimizer"])


def _file(folder: str) -> Path:
    return Path(folder) / f"part-{launch.rank()}.pt"


def _trained(model: Any) -> Iterator[tuple[str, Any]]:
    """The pieces that are trained, with the names of what they hold."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for name, module in model.module.named_modules():
        own = module._flat_param if isinstance(module, FullyShardedDataParallel) else None
        if own is not None and own.requires_grad:
            yield name.replace("_fsdp_wrapped_module.", ""), module
