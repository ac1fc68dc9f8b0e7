"""docs/models.md, from the table that tests/architectures holds against the results."""

import json
from pathlib import Path
from typing import Any

from qlora_pipelines.pipelines.docgen.markdown import table

HEAD = """# Models

Each type of model that transformers loads was made tiny, with random weights, and went through the whole path: planned,
prepared, trained, judged, merged both ways, judged again and loaded by plain transformers. *Right* means that every
adapter moved, that each merged tensor is the base's plus the adapter's product, rounded once, that all others are the
base's bit for bit, and that scores are those of plain transformers. `make test-architectures` holds this table against
the results; this page is made from it.

*Packed*: conversations share a row. *Alone*: they do not, which is slower and as right (`packing: auto` decides it).
*Refused*: the plan says so in one line, in the first seconds. Experts that are fused into one tensor get no adapter and
stay in 16 bit, as do routers, and what reads images or sound. *Distance* is the mean KL divergence of the merged model
from base and adapter, in nats per token.

A base that is published in FP8 or MXFP4 gets a copy in 16 bit, which stage_base_model writes into the store: two bytes
per parameter. DeepSeek V3 in blocks of FP8 and gpt-oss in MXFP4 went through the whole path too. GPTQ, AWQ,
bitsandbytes and other formats are refused by the plan, which names the 16-bit model where the model card does.
"""
RESULTS = {
    "right packed": "right, packed",
    "right alone": "right, alone",
    "refused": "refused",
    "not tried": "not tried",
}


def page(known: Path) -> str:
    """The page.

    Args:
        known: the table, as JSON.
    """
    found: dict[str, dict[str, Any]] = json.loads(known.read_text())
    rows = [
        [
            f"`{name}`",
            f"`{entry['class']}`" if entry["class"] else "",
            RESULTS[entry["outcome"]] + (f": {_escaped(entry['line'])}" if entry["line"] else ""),
            f"{entry['distance']:.0e}" if entry["outcome"].startswith("right") else "",
        ]
        for name, entry in sorted(found.items())
    ]
    counts = {kind: sum(entry["outcome"] == kind for entry in found.values()) for kind in RESULTS}
    total = ", ".join(f"{count} {RESULTS[kind]}" for kind, count in counts.items() if count)
    lines = table(["type", "class", "result", "distance"], rows)
    return f"{HEAD}\nOf {len(found)} entries: {total}.\n\n" + "\n".join(lines) + "\n"


def _escaped(line: str) -> str:
    return line.replace("base model base: ", "").replace("|", "\\|").replace("<", "&lt;")
