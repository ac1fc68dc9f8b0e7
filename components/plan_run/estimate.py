"""What a run will take: memory, time, cost and disk, and the same as JSON for `qlora plan`."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.models import base_model, loading, packable, published_quantization
from qlora_pipelines.components.plan_run import (
    base_checks,
    compare,
    fit,
    gpus,
    host_memory,
    memory,
    preflight,
    time_and_cost,
)
from qlora_pipelines.components.plan_run.checks import Checks


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run on a planned base takes.

    Attributes:
        work: what training goes through; None where the data is not known.
        gpus: every GPU type, with hours and cost; none where the run is on the CPU.
        smallest: name of the smallest type that fits, or ''.
        change: what would make the run fit the largest type, where none fits; else ''.
        methods: other methods to train the model.
        disk: bytes on each pod's disk, by what they are.
    """

    work: time_and_cost.Work | None
    gpus: list[time_and_cost.OnGpu]
    smallest: str
    change: str
    methods: list[compare.Method]
    disk: dict[str, int]


def of(
    config: PlacedRun,
    checks: Checks,
    plan: fit.Plan,
    efficiency: float = time_and_cost.EFFICIENCY,
    prices: dict[str, float] | None = None,
) -> Estimate:
    """Estimates a run.

    Args:
        config: the whole run.
        checks: what the preflight checks found.
        plan: the memory of its training.
        efficiency: share of a GPU's 16-bit speed.
        prices: of an hour, by GPU type.
    """
    needed, dtype = plan.estimate.total, plan.train.compute_dtype
    work = time_and_cost.of_run(config, checks.samples)
    operations = time_and_cost.flops(plan.architecture, plan.train, work) if work else 0.0
    smallest = None if config.on_cpu else gpus.smallest(needed, dtype)
    fitting = bool(smallest) or config.on_cpu
    return Estimate(
        work=work,
        gpus=[] if config.on_cpu else time_and_cost.table(needed, dtype, operations, efficiency, prices or {}),
        smallest=smallest.name if smallest else "",
        change="" if fitting else fit.change_that_fits(plan, max(gpu.memory for gpu in gpus.TABLE)),
        methods=compare.methods(plan.architecture),
        disk=checks.disk(config, plan),
    )


def figures(
    config: PlacedRun, gpu_count: int, efficiency: float, prices: dict[str, float], reach: bool
) -> dict[str, Any]:
    """All figures of a plan, as JSON takes them; sizes in bytes.

    Args:
        config: the whole run.
        gpu_count: GPUs for the estimates with DDP and FSDP.
        efficiency: share of a GPU's 16-bit speed.
        prices: of an hour, by GPU type.
        reach: whether to try access to data, store and MLflow too; else the base's config.json is all that is read.

    Returns:
        What could be found out: without a base that can be read, findings only.

    Raises:
        InputError: with `reach` false, the base cannot be read or planned, or its architecture is not known.
    """
    with tempfile.TemporaryDirectory() as folder:
        checks = preflight.run(config, Path(folder)) if reach else _base_alone(config, Path(folder))
        config = checks.config
        work = time_and_cost.of_run(config, checks.samples)
        shown = {
            "work": dataclasses.asdict(work) if work else {},
            "findings": [dataclasses.asdict(finding) for finding in checks.findings],
            "keys": checks.run_keys._asdict() if checks.run_keys else {},
            "fits": True,
            "verdict": "",
        }
        if (plan := checks.plan) is None:
            return shown
        estimate = of(config, checks, plan, efficiency, prices)
        limit = config.gpu_memory_gib
        parts, total = plan.estimate.parts(), plan.estimate.total
        fits, verdict = True, estimate.change
        if config.on_cpu:
            total, training = host_memory.of_pod(plan, checks.supervised), host_memory.peak(plan, checks.supervised)
            parts = {"training, at its peak": training}
            if total > training:
                parts["the process that restarts it"] = total - training
            fits, verdict = host_memory.verdict(total, config.memory)
        elif limit:
            fits, verdict = fit.verdict(plan, int(limit * fit.GIB), f"a GPU of {limit:g} GiB")
        several = {
            how: memory.estimate(plan.architecture, plan.activations, plan.tokens, gpu_count, how).parts()
            for how in ("ddp", "fsdp")
        }
        return shown | {
            "architecture": plan.architecture.name,
            "parameters": plan.architecture.parameters,
            "trainable": plan.architecture.trainable,
            "in_fused_experts": plan.architecture.in_fused_experts,
            "row_tokens": plan.tokens,
            "device": "cpu" if config.on_cpu else "cuda",
            "memory": parts,
            "total": total,
            "smallest_gpu": estimate.smallest,
            "fits": fits,
            "verdict": verdict,
            "several_gpus": several if gpu_count > 1 else {},
            "compare": [dataclasses.asdict(method) | {"total": method.total} for method in estimate.methods],
            "gpus": [dataclasses.asdict(gpu) | {"fits": not gpu.why_not} for gpu in estimate.gpus],
            "disk": estimate.disk,
        }


def _base_alone(config: PlacedRun, folder: Path) -> Checks:
    """What can be found out from the base's config.json alone."""
    files = base_model.small_files(config.base_model, config.base_revision, folder)
    config = packable.resolved(config, files)
    checks = Checks(config)
    for level, text in base_checks.check(files, loading.empty_model(files), config):
        checks.note(level, "base model", text)
    try:
        published_quantization.check_method(published_quantization.config_of(files))
    except published_quantization.UnreadableFormat as error:
        made_from = base_model.origin(config.base_model, config.base_revision)
        checks.note("fatal", "weights", published_quantization.refusal(config.base_model, error, made_from))
    checks.plan = fit.plan(files, config.for_step("train_qlora"), config.max_length)
    return checks
