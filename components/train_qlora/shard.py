"""FSDP for a base too large for one GPU: every process holds a shard of it, and gathers a layer only to use it.

Accelerate knows FSDP on GPUs only, and has it cast everything to the storage's dtype, also the rotary embedding's
frequencies. So the model is wrapped here, on a GPU as on a CPU, and accelerate is told of it.

It is FSDP's first version. The second loses the quantisation state of 4-bit weights, and changes bytes that read as a
NaN in bfloat16 (bitsandbytes-foundation/bitsandbytes, issue 1945). The first takes 4-bit weights if they are stored in
a floating dtype, the same as that of the other weights (same repository, pull request 970).
"""

from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.train_qlora import launch


def configure(trainer: Any) -> None:
    """Tells a trainer that its model will be wrapped, so that it clips gradients and steps as FSDP needs it."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    for shared in (PartialState(), state):  # the second is filled from the first whenever it is asked for
        shared.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    trainer.is_fsdp_enabled = True


def wrap(model: Any) -> Any:
    """A model with an adapter, sharded over all processes: a unit per decoder layer, and one per matrix of the adapter.

    Args:
        model: on the host, its 4-bit weights stored in a floating dtype.
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


def full_adapter(model: Any) -> dict[str, Any]:
    """The adapter's unsharded weights, on the host, named as in peft's file; all processes call it."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = {}
    for unit_name, unit in model.module.named_modules():
        flat = unit._flat_param if isinstance(unit, FullyShardedDataParallel) else None
        if flat is None or not flat.requires_grad:
            continue
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            for name, parameter in unit.module.named_parameters():
                full_name = f"{unit_name}.{name}".replace("_fsdp_wrapped_module.", "").replace(".default.", ".")
                found[full_name] = parameter.detach().cpu().clone()
    return found


def save(trainer: Any, folder: str) -> None:
    """Writes this process's shard of adapter and optimiser. As many processes can resume from it, no other number."""
    import torch

    Path(folder).mkdir(parents=True, exist_ok=True)
    state = {
        "adapter": [parameter.detach() for parameter in _trained(trainer)],
        "optimizer": trainer.optimizer.state_dict(),
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
    }
    torch.save(state, _file(folder))


def load(trainer: Any, folder: str) -> None:
    """Reads back what `save` wrote."""
    import torch

    state = torch.load(_file(folder), map_location=loading.device(), weights_only=True)
    for parameter, value in zip(_trained(trainer), state["adapter"], strict=True):
        parameter.data.copy_(value)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])


def _trained(trainer: Any) -> list[Any]:
    return [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]


def _file(folder: str) -> Path:
    return Path(folder) / f"shard-{launch.rank()}.pt"
