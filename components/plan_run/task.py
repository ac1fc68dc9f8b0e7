"""Checks a run before anything expensive starts, and fixes all that could change under its name."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from qlora_pipelines.components.core.config.base import json_text
from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, run_tokenizer
from qlora_pipelines.components.core.registry import references
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import claims, keys, outcomes, storage
from qlora_pipelines.components.plan_run import fit, host_memory, plan_report, preflight
from qlora_pipelines.components.plan_run.checks import Checks

Config = PlacedRun
MIB = 1 << 20


class Result(NamedTuple):
    """What later steps work from; the `*_options` are JSON of the options that have no parameter of their own.

    `run_config` is JSON of the whole run, the base's revision fixed: what makes the same model again.
    `planned_*_mib` is the memory that training needs on a GPU, or at its peak where there is none; 0: not known.
    The last six place the pods of training and evaluation, which take no parameter of the run without this check:
    `accelerator` is empty where they run on the CPU.
    """

    base_revision: str
    tokenizer_uri: str
    listing_uri: str
    data_digest: str
    champion_version: str
    data_key: str
    training_key: str
    merge_key: str
    prepare_options: str
    train_options: str
    evaluate_options: str
    merge_options: str
    run_config: str
    planned_gpu_mib: int
    planned_host_mib: int
    accelerator: str
    gpu_count: str
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]
    cpu: str
    memory: str


def run(config: PlacedRun, *, report: str, training_key: str = "", claim: str = "", run_id: str = "") -> Result:
    """Tries all that the run will use, resolves base, data and champion, and computes the three keys.

    Args:
        config: the whole run.
        report: path of the HTML report to write; it is written too where something is wrong.
        training_key: the key that the run must have; empty is not checked.
        claim: of several runs with this training_key one continues; empty: this one.
        run_id: of the Kubeflow run, for its claim.

    Raises:
        InputError: all that would make the run fail later, or that another run continues in its place; in one line.
    """
    if claim and not training_key:
        raise InputError("claim is given without training_key; leave both empty, or take both from qlora trigger")
    place = claims.place(training_key, config.model_name) if claim else ""
    claimed = claims.write(place, claims.parse(claim), run_id) if claim else 0.0
    with tempfile.TemporaryDirectory() as folder:
        checks = preflight.run(config, Path(folder))
        config = checks.config
        for finding in checks.findings:
            if finding.level != "fatal":
                log(f"{finding.subject}: {finding.text}", "warning" if finding.level == "warning" else "info")
        host = host_memory.peak(checks.plan, checks.supervised) if checks.plan else 0
        if checks.fatal or checks.files is None or checks.run_keys is None:
            plan_report.write(config, checks, [], host, report)
            raise InputError("; ".join(dict.fromkeys(checks.fatal)))
        if checks.plan:
            gpu = "" if config.on_cpu else f"{checks.plan.estimate.total / fit.GIB:.1f} GiB on a GPU, "
            log(f"memory: {gpu}{host / fit.GIB:.1f} GiB {'on the CPU' if config.on_cpu else 'without one'}")
        tokenizer_uri = _keep_tokenizer(checks.files, checks.tokenizer_digest)
    if training_key not in ("", checks.run_keys.training_key):
        raise InputError(
            f"training_key is {checks.run_keys.training_key[:12]}, not {training_key[:12]}: base, data or options are"
            " no longer those that the run was started for; start a new one, or empty training_key"
        )
    if claim:
        claims.settle(place, claims.parse(claim), run_id, claimed)
    _record(config, checks, checks.run_keys)
    outcomes.tell(training_key=checks.run_keys.training_key, merge_key=checks.run_keys.merge_key)
    fixed = _fixed(config, checks.revision, tokenizer_uri)
    result = Result(
        base_revision=checks.revision,
        tokenizer_uri=tokenizer_uri,
        listing_uri=listing.save(checks.listing),
        data_digest=checks.data_digest,
        champion_version=checks.champion,
        **checks.run_keys._asdict(),
        prepare_options=fixed.options_of("prepare_dataset"),
        train_options=config.options_of("train_qlora"),
        evaluate_options=config.options_of("evaluate_model"),
        merge_options=config.options_of("dequantize_and_merge"),
        # The base at the revision that its name means now: so the same configuration makes the same model again.
        run_config=json_text(fixed.run_config()),
        planned_gpu_mib=round(checks.plan.estimate.total / MIB) if checks.plan else 0,
        planned_host_mib=round(host / MIB),
        accelerator=config.resource(),
        gpu_count=config.gpu_count,
        node_selector=config.node_selector,
        tolerations=config.all_tolerations(),
        cpu=config.cpu,
        memory=config.memory,
    )
    shown: list[tuple[str, object]] = [
        (name.replace("_", " "), str(value))
        for name, value in result._asdict().items()
        if "options" not in name and name != "run_config"
    ]
    plan_report.write(config, checks, shown, host, report)
    return result


def _fixed(config: PlacedRun, revision: str, tokenizer_uri: str) -> PlacedRun:
    """The run as it is now, whatever becomes of a branch of the base and of a file with a chat template."""
    options = dict(config.options)
    if run_tokenizer.is_address(config.for_step("prepare_dataset").chat_template):
        address = storage.join(tokenizer_uri, run_tokenizer.TEMPLATE)
        options["prepare_dataset"] = options["prepare_dataset"] | {"chat_template": address}
    return config.model_copy(update={"base_revision": revision, "options": options})


def _record(config: PlacedRun, checks: Checks, run_keys: keys.RunKeys) -> None:
    """Says in the store what the run will make and use, before it looks for any of it: clean-up leaves that alone."""
    quantised = checks.weights is not None and checks.weights.quantised
    in_store = base_model.is_on_hub(config.base_model) or quantised
    named = references.pieces(
        training_key=run_keys.training_key,
        merge_key=run_keys.merge_key,
        data_key=run_keys.data_key,
        data_digest=checks.data_digest,
        base_uri=base_model.place_in_store(config.base_model, checks.revision) if in_store else "",
    )
    named.append(f"claims/{run_keys.training_key}")
    references.write(checks.registry, [storage.root()], run_keys.merge_key, named)


def _keep_tokenizer(files: Path, digest: str) -> str:
    """Puts the tokenizer into the store, where steps without the hub's token read it; returns its address."""
    uri = storage.join(storage.root(), "tokenizers", digest)
    for name in base_model.tokenizer_files(files):
        storage.write_bytes(storage.join(uri, name), (files / name).read_bytes())
    return uri
