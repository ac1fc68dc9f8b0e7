"""The plan as a page."""

import dataclasses
from pathlib import Path

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import OPTION_STEPS
from qlora_pipelines.components.core.report import Report
from qlora_pipelines.components.plan_run import compare, fit, gpus, time_and_cost
from qlora_pipelines.components.plan_run.access import Access, disk_of

GIB = 1 << 30


def write(config: RunConfig, found: Access, shown: list[tuple[str, object]], host: int, path: str | Path) -> None:
    """Writes the page: findings first, then memory, time and disk, and what the run works from.

    Args:
        config: the whole run.
        found: what the checks found.
        shown: what the run works from, by name.
        host: bytes that the training process needs on a machine without a GPU; 0: not known.
        path: file to write.
    """
    report = Report("Plan", "What this run works from; none of it changes while the run lasts.")
    fatal = len(found.fatal)
    report.verdict(not fatal, f"{fatal} things to fix" if fatal else "Nothing stands in the way")
    report.table(["", "what", "found"], [(f.level, f.subject, f.text) for f in found.findings])
    if found.plan:
        _memory(report, found.plan, host)
        _time(report, config, found, found.plan)
    if shown:
        report.section("What it works from")
        report.table(["", ""], [("base model", config.base_model), *shown])
    for side, source in found.listing.items():
        report.section("Training data" if side == "train" else "Evaluation data", source["uri"])
        report.table(["file", "bytes", "content"], source["files"])
    report.section("Options")
    for step in OPTION_STEPS:
        report.table([step, ""], [(name, str(value)) for name, value in config.for_step(step).model_dump().items()])
    report.write(path)


def _memory(report: Report, plan: fit.Plan, host: int) -> None:
    shape = f"packed rows of {plan.tokens} tokens, all of them supervised at worst"
    report.section("Memory on the GPU", f"{plan.architecture.name}, {shape}. The optimiser is paged.")
    rows = [(part.replace("_", " "), size / GIB) for part, size in plan.estimate.parts().items()]
    report.table(["part", "GiB"], [*rows, ("total", plan.estimate.total / GIB)])
    if host:
        report.table(["", "GiB"], [("host memory where there is no GPU, at its peak", host / GIB)])
    report.section("Other ways to train this model", "Weights, gradients and optimiser, without activations; GiB.")
    lines = []
    for way in compare.ways(plan.architecture):
        sizes = (way.weights, way.gradients, way.optimiser, way.total)
        lines.append((way.weights_in, way.trained, *(size / GIB for size in sizes)))
    report.table(["weights in", "trained", "weights", "gradients", "optimiser", "total"], lines)


def _time(report: Report, config: RunConfig, found: Access, plan: fit.Plan) -> None:
    work = time_and_cost.of_run(config, found.samples)
    operations = time_and_cost.flops(plan.architecture, plan.train, work) if work else 0.0
    if work:
        report.section("Work", "Rows and tokens are estimated from the first rows and the size of the files.")
        report.table(["", ""], [(name.replace("_", " "), value) for name, value in dataclasses.asdict(work).items()])
    lines = time_and_cost.table(plan.estimate.total, plan.train.compute_dtype, operations, time_and_cost.EFFICIENCY, {})
    speed = f"Time on one GPU at {time_and_cost.EFFICIENCY:.0%} of the data sheet's 16-bit speed."
    report.section("GPU types", f"{_fits(plan)} {speed}")
    report.table(["type", "GiB", "", "time"], [line.cells()[:4] for line in lines])
    report.section("Disk", "Of the pods where the store is on S3; a local store is read where it is.")
    report.table(["", "GiB"], [(what, size / GIB) for what, size in disk_of(found, config, plan).items()])


def _fits(plan: fit.Plan) -> str:
    smallest = gpus.smallest(plan.estimate.total, plan.train.compute_dtype)
    if smallest:
        return f"The smallest that fits: {smallest.name}."
    return f"None fits: {fit.change_that_fits(plan, max(gpu.memory for gpu in gpus.TABLE))}."
