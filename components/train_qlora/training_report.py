"""The training as a page."""

from collections.abc import Sequence

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.report import Report

POINTS = 40
"""Points of a loss curve, at most."""


def means(losses: Sequence[float]) -> list[tuple[int, float]]:
    """A curve of at most `POINTS` points: the last step of each stretch, and the mean loss over the stretch."""
    stretch = max(1, -(-len(losses) // POINTS))
    parts = [(start, losses[start : start + stretch]) for start in range(0, len(losses), stretch)]
    return [(start + len(part), sum(part) / len(part)) for start, part in parts]


def write(config: TrainConfig, losses: Sequence[float], peak_mib: int, planned_mib: int, path: str) -> None:
    """Writes the page.

    Args:
        config: the training options.
        losses: of each step, nats per supervised token.
        peak_mib: the most memory in use at any time.
        planned_mib: what plan_run said; 0: nothing.
        path: file to write.
    """
    points = means(losses)
    report = Report("Training", f"{len(losses)} steps; loss from {points[0][1]:.4f} to {points[-1][1]:.4f}.")
    figures: list[tuple[str, object]] = [
        ("steps", f"{len(losses):,}"),
        ("last loss, nats per token", f"{points[-1][1]:.4f}"),
        ("memory at its peak", f"{peak_mib:,} MiB"),
    ]
    if planned_mib:
        figures.append(("the plan said", f"{planned_mib:,} MiB"))
    report.figures(figures)
    report.section("Loss", "Nats per supervised token, mean over the steps since the point before.")
    report.curve([(float(step), loss) for step, loss in points], "steps", "loss")
    report.table(["step", "loss, nats per token"], points)
    report.section("Options")
    report.table(["option", "value"], [(name, f"{value}") for name, value in config.model_dump().items()])
    report.write(path)
