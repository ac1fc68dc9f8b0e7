"""`qlora plan`: what a run needs, before anything is started."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from qlora_pipelines.components.plan_run import estimate, gpus
from qlora_pipelines.components.plan_run.time_and_cost import EFFICIENCY, OnGpu
from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.local import workspace

GIB = 1 << 30


def text(figures: dict[str, Any], with_compare: bool) -> str:
    """The same figures for people, in GiB."""
    lines = [line for part in _parts(figures, with_compare) for line in (*part, "")]
    lines += [f"{finding['level']:<8} {finding['subject']}: {finding['text']}" for finding in figures["findings"]]
    lines += [f"{name.replace('_', ' '):<12} {key}" for name, key in figures["keys"].items()]
    if smallest := figures.get("smallest_gpu"):
        lines.append(f"The smallest GPU that fits: {smallest}")
    elif figures.get("device") == "cuda":
        lines.append("No single GPU in the table fits.")
    return "\n".join([*lines, *([figures["verdict"]] if figures["verdict"] else [])])


def _parts(figures: dict[str, Any], with_compare: bool) -> Iterator[list[str]]:
    """The tables, each with the lines that belong to it."""
    if "memory" not in figures:
        return
    yield [
        f"{figures['architecture']}: {figures['parameters'] / 1e9:.2f} B parameters,"
        f" {figures['trainable'] / 1e6:.1f} M trained, packed rows of {figures['row_tokens']} tokens"
    ]
    if work := figures["work"]:
        yield [
            f"about {work['rows']:,} rows of {work['tokens']:,} tokens in all, packed to {work['packed_rows']:,} rows:"
            f" {work['steps']:,} steps over {work['tokens_in_all']:,} tokens"
        ]
    if figures["device"] == "cpu":
        yield _columns([("memory on the CPU", "GiB"), *_sizes(figures["memory"])])
    else:
        yield _columns([("memory on one GPU", "GiB"), *_sizes(figures["memory"]), ("total", _gib(figures["total"]))])
    if figures["in_fused_experts"]:
        share = figures["in_fused_experts"] / figures["parameters"]
        yield [f"{share:.0%} of the parameters are fused experts, which bitsandbytes leaves in 16 bit."]
    for how, parts in figures["several_gpus"].items():
        yield [f"each GPU with {how.upper()}, an estimate: {_gib(sum(parts.values()))} GiB"]
    if with_compare:
        sizes = ("weights", "gradients", "optimiser", "total")
        ways = [(way["weights_in"], way["trained"], *(_gib(way[part]) for part in sizes)) for way in figures["compare"]]
        yield [*_columns([("weights in", "trained", *sizes), *ways]), "GiB, without activations"]
    cells = (OnGpu(**{name: gpu[name] for name in gpu if name != "fits"}).cells() for gpu in figures["gpus"])
    if rows := [(gpu, f"{gib:g}", time, cost, fits) for gpu, gib, fits, time, cost in cells]:
        yield _columns([("GPU type", "GiB", "time on one", "cost", ""), *rows])
    yield _columns([("disk, with a store in a bucket", "GiB"), *_sizes(figures["disk"])])


def _sizes(parts: dict[str, int]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _gib(size)) for name, size in parts.items()]


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as text, the first column flush left and the others flush right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = f"{{:<{first}}}" + "".join(f"  {{:>{width}}}" for width in others)
    return [line.format(*row) for row in rows]


def _price(value: str) -> tuple[str, float]:
    """`NAME=PRICE`, the name as in the table of GPU types."""
    name, _, price = value.partition("=")
    names = click.Choice([gpu.name for gpu in gpus.TABLE])
    return names(name), click.FLOAT(price)


@click.command("plan")
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The run's YAML file.")
@click.option("--compare", "with_compare", is_flag=True, help="Add FP32, 16-bit and INT8 training of this model.")
@click.option(
    "--gpus", "gpu_count", default=1, type=click.IntRange(1, 1024), help="Also estimate DDP and FSDP on this many GPUs."
)
@click.option("--efficiency", default=EFFICIENCY, type=click.FloatRange(0.01, 1), show_default=True,
              help="Share of a GPU's 16-bit speed that training reaches.")  # fmt: skip
@click.option("--price", "prices", multiple=True, type=_price, metavar="NAME=PRICE",
              help="Price of an hour of a GPU type; may be repeated.")  # fmt: skip
@click.option("--access/--no-access", "reach", default=True, help="Also check the access to data, store and MLflow.")
@click.option("--runs", default=workspace.DEFAULT, type=click.Path(path_type=Path), help="Folder for runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON; sizes in bytes.")
@click.pass_context
def plan(
    ctx: click.Context,
    path: Path,
    with_compare: bool,
    gpu_count: int,
    efficiency: float,
    prices: tuple[tuple[str, float], ...],
    reach: bool,
    runs: Path,
    as_json: bool,
) -> None:
    r"""Estimate what a run needs, memory, time and disk, and check that all it uses can be reached.

    Store and registry are $QLORA_STORE and $MLFLOW_TRACKING_URI, or RUNS/store and RUNS/mlflow.db, as for `qlora run`.

    \b
    Example:
      qlora plan --config pipelines/demo/demo.yaml --compare
    """
    workspace.use(runs)
    with contextlib.redirect_stdout(sys.stderr):  # lines of progress are no part of the plan
        figures = estimate.figures(run_file.load(path).config, gpu_count, efficiency, dict(prices), reach)
    click.echo(json.dumps(figures) if as_json else text(figures, with_compare))
    fatal = any(finding["level"] == "fatal" for finding in figures["findings"])
    ctx.exit(1 if fatal or not figures["fits"] else 0)
