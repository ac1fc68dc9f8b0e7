"""The plan as a page."""

import dataclasses
from pathlib import Path

from qlora_pipelines.components.core.config.placement import PlacedRun, in_bytes
from qlora_pipelines.components.core.config.steps import OPTION_STEPS
from qlora_pipelines.components.core.report import Report
from qlora_pipelines.components.plan_run import estimate, fit, host_memory, time_and_cost
from qlora_pipelines.components.plan_run.checks import Checks
from qlora_pipelines.components.plan_run.estimate import Estimate

GIB = 1 << 30


def write(config: PlacedRun, checks: Checks, shown: list[tuple[str, object]], host: int, path: str | Path) -> None:
    """Writes the page: findings first, then memory, time and disk, and what the run works from.

    Args:
        config: the whole run.
        checks: what the preflight checks found.
        shown: what the run works from, by name.
        host: bytes that the training process needs on a machine without a GPU; 0: not known.
        path: file to write.
    """
    report = Report("Plan", "What this run works from; none of it changes while the run lasts.")
    fatal = len(checks.fatal)
    report.verdict(not fatal, f"{fatal} things to fix" if fatal else "Nothing stands in the way")
    report.table(["", "what", "found"], [(f.level, f.subject, f.text) for f in checks.findings])
    if checks.plan:
        estimated = estimate.of(config, checks, checks.plan)
        _memory(report, config, checks.plan, host)
        _methods(report, estimated)
        _time(report, estimated)
    if shown:
        report.section("What it works from")
        report.table(["", ""], [("base model", config.base_model), *shown])
    for side, source in checks.listing.items():
        report.section("Training data" if side == "train" else "Evaluation data", source["uri"])
        report.long_table(["file", "bytes", "content"], source["files"])
    report.section("Options")
    for step in OPTION_STEPS:
        report.table([step, ""], [(name, str(value)) for name, value in config.for_step(step).model_dump().items()])
    report.write(path)


def _memory(report: Report, config: PlacedRun, plan: fit.Plan, host: int) -> None:
    shape = f"packed rows of {plan.tokens} tokens, all of them supervised at worst"
    if config.on_cpu:
        report.section("Memory on the CPU", f"{plan.architecture.name}, packed rows of {plan.tokens} tokens.")
        needs = [("training, at its peak", host / GIB)]
        if plan.train.max_restarts:
            needs.append(("the process that restarts it", host_memory.SUPERVISOR / GIB))
        report.table(["", "GiB"], [*needs, ("the pod's", in_bytes(config.memory) / GIB)])
        return
    report.section("Memory on the GPU", f"{plan.architecture.name}, {shape}. The optimiser is paged.")
    rows = [(part.replace("_", " "), size / GIB) for part, size in plan.estimate.parts().items()]
    report.table(["part", "GiB"], [*rows, ("total", plan.estimate.total / GIB)])
    if host:
        report.table(["", "GiB"], [("host memory where there is no GPU, at its peak", host / GIB)])


def _methods(report: Report, estimated: Estimate) -> None:
    report.section("Other ways to train this model", "Weights, gradients and optimiser, without activations; GiB.")
    report.table(
        ["weights in", "trained", "weights", "gradients", "optimiser", "total"],
        [
            (
                method.weights_in,
                method.trained,
                *(size / GIB for size in (method.weights, method.gradients, method.optimiser, method.total)),
            )
            for method in estimated.methods
        ],
    )


def _time(report: Report, estimated: Estimate) -> None:
    if estimated.work:
        rows = dataclasses.asdict(estimated.work).items()
        report.section("Work", "Rows and tokens are estimated from the first rows and the size of the files.")
        report.table(["", ""], [(name.replace("_", " "), value) for name, value in rows])
    if estimated.gpus:
        smallest, change = estimated.smallest, estimated.change
        fits = f"The smallest that fits: {smallest}." if smallest else f"None fits: {change}."
        speed = f"Time on one GPU at {time_and_cost.EFFICIENCY:.0%} of the data sheet's 16-bit speed."
        report.section("GPU types", f"{fits} {speed}")
        report.table(["type", "GiB", "", "time"], [line.cells()[:4] for line in estimated.gpus])
    report.section("Disk", "Of the pods where the store is in a bucket; a local store is read in place.")
    report.table(["", "GiB"], [(what, size / GIB) for what, size in estimated.disk.items()])
