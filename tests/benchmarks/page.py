"""Writes docs/benchmarks.md from the figures of a run of `make bench`."""

import importlib.metadata
import os
import platform
from pathlib import Path

PAGE = Path("docs/benchmarks.md")
FIGURES = {
    "train_vs_trl": ("supervised tokens/s against TRL's usual script", "≥ 2.5", "train_vs_trl"),
    "train_vs_trl_packed": ("supervised tokens/s against TRL at its best here", "≥ 1.25", "train_vs_trl"),
    "train_floor_share": ("share of a training step in matrix products", "≥ 0.5", "train_vs_trl"),
    "prepare_vs_trl": ("rows/s against TRL's own preparation, ours with near duplicates removed", "≥ 10",
                       "prepare_vs_trl"),
    "prepare_peak_mib": ("peak memory on a million rows of about 1 kB, MiB", "≤ 1500", "prepare_vs_trl"),
    "near_duplicates_recall_ours": ("share of known near duplicates that are left out", "≥ 0.95",
                                    "near_duplicates_vs_datatrove"),
    "near_duplicates_precision_ours": ("share of the rows left out that are known near duplicates", "≥ 0.99",
                                       "near_duplicates_vs_datatrove"),
    "plan_vs_measured": ("planned over measured peak memory of the demo's training", "0.9 to 1.1", "plan_vs_measured"),
    "evaluate_vs_lm_eval": ("tokens/s against lm-eval at its best batch size", "≥ 1.2", "evaluate_vs_lm_eval"),
    "evaluate_memory_vs_lm_eval": ("peak memory over lm-eval's at that batch size", "≤ 0.5", "evaluate_vs_lm_eval"),
    "evaluate_scoring_memory_vs_lm_eval": ("the same of what comes on top of libraries and weights", "no goal",
                                           "evaluate_vs_lm_eval"),
    "evaluate_nll_difference": ("distance of mean losses from lm-eval's, nats a token", "≤ 0.001",
                                "evaluate_vs_lm_eval"),
    "merge_time_vs_peft": ("time over peft's merge, into the 16-bit original, 1.1 B parameters", "≤ 0.5",
                           "merge_vs_peft"),
    "merge_dequantized_time_vs_peft": ("the same into the dequantised base", "≤ 1", "merge_vs_peft"),
    "merge_peak_mib": ("peak memory of our merges, MiB", "≤ 700", "merge_vs_peft"),
    "merge_peak_mib_3x": ("the same on a model of three times the size", "within 10 %", "merge_vs_peft"),
    "merge_fidelity_vs_exact": ("distance of logits from what was trained, over that of an exact merge rounded once",
                                "≤ 1.1", "merge_vs_peft"),
    "merge_fidelity_vs_peft_4bit": ("the same over that of peft's merge into the 4-bit base", "≤ 0.2",
                                    "merge_vs_peft"),
    "store_upload_vs_boto3": ("MiB/s to S3 against boto3's transfer manager", "≥ 1", "store_vs_boto3"),
    "store_download_vs_boto3": ("the same from S3, ours with a comparison of the sha256", "≥ 1", "store_vs_boto3"),
    "store_pull_vs_boto3": ("the same of a pull, both with a comparison of the sha256", "≥ 1", "store_vs_boto3"),
    "store_upload_vs_before": ("upload against this project's code on boto3", "≥ 1", "store_vs_boto3"),
    "store_download_vs_before": ("download against it, which compared nothing", "≥ 1", "store_vs_boto3"),
    "store_pull_vs_before": ("pull against it", "≥ 1", "store_vs_boto3"),
    "store_peak_mib": ("our peak memory in a transfer of 400 MiB, libraries included", "no goal", "store_vs_boto3"),
}  # fmt: skip
"""By key of dist/bench.json: what it is, what it was meant to be, and the module that measures it."""
PEERS = ("trl", "transformers", "peft", "bitsandbytes", "lm-eval", "torch")


def text(figures: dict[str, float], seconds: float) -> str:
    """The page, in Markdown.

    Args:
        figures: what `make bench` wrote to dist/bench.json.
        seconds: how long it took.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PEERS)
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench`, which took {seconds / 60:.0f} minutes on {_machine()}. Each ratio is against a peer"
        f" measured in the same run, on the same rows, each in a process of its own: {versions}, Python"
        f" {platform.python_version()}. The model is SmolLM2-135M-Instruct, for the merge's speed a random Llama.",
        "",
        "| figure | measured | meant to be | what it is | `python -m tests.benchmarks.…` |",
        "|---|---:|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {_number(figures[name])} | {goal} | {what} | `{module}` |"
        for name, (what, goal, module) in FIGURES.items()
        if name in figures
    ]
    rest = {name: value for name, value in figures.items() if name not in FIGURES}
    lines += ["", "What these are made of:", "", "| figure | measured |", "|---|---:|"]
    lines += [f"| `{name}` | {_number(value)} |" for name, value in rest.items()]
    lines += [
        "",
        "Not measured here: anything on a GPU, and more than one machine. The machine is shared and noisy: a ratio may"
        " differ by a tenth from one run to the next. `make bench-quality` compares losses over three seeds;"
        " [DECISIONS.md](../DECISIONS.md) has what it found, and what one GPU showed.",
    ]
    return "\n".join(lines) + "\n"


def _machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB of memory and no GPU"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"
