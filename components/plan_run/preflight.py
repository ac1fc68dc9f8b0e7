"""Preflight checks: all that a run will use is tried at once: base, tokenizer, data, store, MLflow, nodes.

Each check gives findings; none stops another, so that all problems can be fixed in one go.
"""

import concurrent.futures
import itertools
import re
from pathlib import Path

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.data import duplicates, listing
from qlora_pipelines.components.core.models import (
    base_model,
    loading,
    packable,
    published_quantization,
    run_tokenizer,
)
from qlora_pipelines.components.core.registry import champion, mlflow_client, references
from qlora_pipelines.components.core.runtime import load_libraries
from qlora_pipelines.components.core.sample_size import groups_needed
from qlora_pipelines.components.core.store import attempts, keys, storage
from qlora_pipelines.components.plan_run import (
    base_checks,
    finished,
    fit,
    host_memory,
    nodes,
    sampling,
    stopping,
    tokenizer_checks,
    weight_files,
)
from qlora_pipelines.components.plan_run.checks import Checks


def run(config: PlacedRun, folder: Path) -> Checks:
    """Runs all checks.

    Args:
        config: the whole run.
        folder: an empty folder, for the base's small files.
    """
    checks = Checks(config)
    # Imported here once: two threads that import transformers at the same time can see it half made.
    load_libraries("peft", "transformers")
    independent = (_store, _mlflow, _base, _data, _nodes)
    with concurrent.futures.ThreadPoolExecutor(len(independent)) as pool:
        for job in [pool.submit(check, checks, config, folder) for check in independent]:
            job.result()
    config = checks.config
    if checks.files and checks.listing:
        _samples(checks, config, checks.files)
    if checks.plan and config.on_cpu:
        fits, text = host_memory.verdict(host_memory.of_pod(checks.plan, checks.supervised), config.memory)
        checks.note("ok" if fits else "fatal", "memory", text)
    if checks.files and checks.listing and not checks.fatal:
        with checks.collect_errors("MLflow"):
            checks.run_keys = _keys(checks, config, checks.files)
        with checks.collect_errors("store"):
            if checks.run_keys:
                _stored_work(checks, config, checks.run_keys)
    order = {"fatal": 0, "warning": 1, "ok": 2}
    checks.findings.sort(key=lambda finding: (order[finding.level], finding.subject, finding.text))
    return checks


def _store(checks: Checks, _config: PlacedRun, _folder: Path) -> None:
    with checks.collect_errors("store"):
        storage.check_writable(storage.root())
        checks.note("ok", "store", f"{storage.root()} can be written, read and deleted in")


def _mlflow(checks: Checks, config: PlacedRun, _folder: Path) -> None:
    with checks.collect_errors("MLflow"):
        client = mlflow_client.connect()
        mlflow_client.check_registering(client, config.model_name)
        checks.registry = references.registry_id(client)
        checks.champion = champion.current_version(client, config.model_name)
        checks.note("ok", "MLflow", f"answers and lets one register; champion of {config.model_name} today:"
                   f" {checks.champion or 'none'}")  # fmt: skip
        if checks.champion:
            champion.find(config.model_name, checks.champion)  # what a new model is compared with must be there


def _base(checks: Checks, config: PlacedRun, folder: Path) -> None:
    with checks.collect_errors("base model"):
        checks.revision = base_model.resolve(config.base_model, config.base_revision)
        files = base_model.small_files(config.base_model, checks.revision, folder / "base")
        checks.note("ok", "base model", f"{config.base_model} can be read at {checks.revision[:19]}, in safetensors")
        checks.config = config = packable.resolved(config, files)
        with checks.collect_errors("tokenizer"):
            _tokenizer(checks, config, files, folder)
        described = loading.empty_model(files)
        for level, text in base_checks.check(files, described, config):
            checks.note(level, "base model", text)
        with checks.collect_errors("weights"):
            checks.weights = weight_files.read(
                config.base_model, checks.revision, published_quantization.config_of(files)
            )
            level, text = weight_files.compare(checks.weights.shapes, described)
            checks.note(level, "weights", f"base model {config.base_model}: {text}")
            if checks.weights.quantised:
                size = checks.weights.size / fit.GIB
                text = f"are quantised ({checks.weights.quantised}); training gets a copy in 16 bit, {size:.1f} GiB"
                checks.note("ok", "weights", f"base model {config.base_model}: its weights {text}")
        checks.plan = fit.plan(files, config.for_step("train_qlora"), config.max_length)
        _memory(checks, checks.plan, config.gpu_memory_gib)
        if checks.weights and not checks.fatal:
            why = weight_files.unmergeable(files, checks.weights.shapes, checks.plan.architecture)
            checks.note("fatal" if why else "ok", "merge", why or "the files have a tensor for each adapted layer")


def _tokenizer(checks: Checks, config: PlacedRun, files: Path, folder: Path) -> None:
    chat_template = config.for_step("prepare_dataset").chat_template
    files = run_tokenizer.make(files, chat_template, folder / "tokenizer")
    tokenizer = loading.load_tokenizer(files)
    checks.files = files
    templates = f"the chat template {chat_template}" if chat_template else "a chat template"
    found = f"has {templates}" if tokenizer.chat_template else "has no chat template: for plain text only"
    checks.note("ok", "tokenizer", f"can be read and {found}")
    of_tokenizer = tokenizer_checks.check(files, tokenizer, config.base_model)
    for level, text in itertools.chain(of_tokenizer, stopping.check(files, tokenizer, config.base_model)):
        checks.note(level, "tokenizer", text)


def _memory(checks: Checks, plan: fit.Plan, gib: float) -> None:
    without = plan.architecture.without_adapter
    kinds = ", ".join(f"{share:.0%} {kind}" for kind, share in without.items() if share >= 0.005)
    if kinds:
        level = "warning" if sum(without.values()) > 0.5 else "ok"
        checks.note(level, "adapter", f"parameters of the layers that get no adapter: {kinds}")
    if plan.architecture.in_fused_experts:
        share = plan.architecture.in_fused_experts / plan.architecture.parameters
        kept = f"{plan.architecture.in_16bit:.0%} of the parameters stay in 16 bit"
        checks.note("warning", "memory", f"{kept}; fused experts, which are not quantised, are {share:.0%}")
    if gib:
        fits, text = fit.verdict(plan, int(gib * fit.GIB), f"a GPU of {gib:g} GiB")
        checks.note("ok" if fits else "fatal", "memory", text if fits else f"the run {text}")


def _data(checks: Checks, config: PlacedRun, _folder: Path) -> None:
    with checks.collect_errors("data"):
        checks.listing = listing.make(config.dataset_uri, config.eval_dataset_uri)
        checks.data_digest = listing.data_digest(checks.listing)
        files = sum(len(source["files"]) for source in checks.listing.values())
        checks.note("ok", "data", f"{files} files, digest {checks.data_digest[:12]}")


def _nodes(checks: Checks, config: PlacedRun, _folder: Path) -> None:
    if found := nodes.check(config):
        level, text = found
        checks.note(level, "nodes", text)


def _samples(checks: Checks, config: PlacedRun, files: Path) -> None:
    """Reads the first rows of each side; warns where too few are left for the gate to decide anything."""
    prepare = config.for_step("prepare_dataset")
    for side, source in checks.listing.items():
        with checks.collect_errors("data"):
            sample = checks.samples[side] = sampling.sample(source, config, files)
            checks.note("ok", "data", f"{side}: about {sample.rows:,} rows of form {sample.form},"
                        f" {sample.tokens_per_row:.0f} tokens per row, {sample.supervised:.0%} supervised")  # fmt: skip
            if sample.unusable > prepare.max_rejected_share * sample.checked:
                text = f"{sample.unusable} of the first {sample.checked} rows cannot be used ({sample.reason})"
                checks.note("warning", "data", f"{side}: {text}; {prepare.max_rejected_share:.1%} of all are allowed")
            if sample.left_out:
                text = (
                    f"{sample.left_out} of the first {sample.checked} rows ask not to be trained on, and are left out"
                )
                checks.note("warning", "data", f"{side}: {text}")
            for note, rows in sample.notes.items():
                checks.note("warning", "data", f"{side}: {note}: {rows} of the first {sample.checked} rows")
            for level, text in stopping.check_rows(files, sample.encoded, config.max_length):
                checks.note(level, "data", f"{side}: {text}")
            if sample.near_duplicates > duplicates.MANY:
                checks.note("warning", "data", f"{side}, first rows: {duplicates.many(sample.near_duplicates)}")
    if evaluated := checks.samples.get("eval") or checks.samples.get("train"):
        rows = evaluated.rows if "eval" in checks.listing else round(evaluated.rows * prepare.eval_share)
        needed = groups_needed(1 - config.for_step("evaluate_model").confidence)
        if rows < needed:
            text = f"about {rows} rows to evaluate on: the gate can decide nothing on fewer than {needed}"
            advice = "and the model will not be registered; give more data or raise eval_share"
            checks.note("warning", "data", f"{text}, {advice}")


def _keys(checks: Checks, config: PlacedRun, files: Path) -> keys.RunKeys:
    """The keys; with them it finds out which version a model of this training has to match."""
    checks.tokenizer_digest = base_model.tokenizer_digest(files)
    run_keys = keys.of_run(
        config,
        base_revision=checks.revision,
        data_digest=checks.data_digest,
        tokenizer_digest=checks.tokenizer_digest,
    )
    if current := checks.champion:
        client = mlflow_client.connect()
        checks.champion = champion.to_match(client, config.model_name, run_keys.training_key)
        if checks.champion != current:
            rival = f"version {checks.champion}" if checks.champion else "no champion"
            checks.note("ok", "MLflow", f"version {current} came out of this very training, which had {rival} to match")
    return run_keys


def _stored_work(checks: Checks, config: PlacedRun, run_keys: keys.RunKeys) -> None:
    """Finds what of this run's work is in the store, so that it will not be done again."""
    done = finished.find(config, run_keys, checks.champion)
    for what, work in done.items():
        checks.note("ok", what, f"finished already: {work.uri}" if work else "not made yet")
    if not done["adapter"]:
        step = _newest_checkpoint(run_keys.training_key)
        text = f"training goes on from step {step}" if step else "none; training starts at the first step"
        checks.note("ok", "checkpoint", text)
    _staged(checks, config)
    if checks.plan and not done["merged model"]:
        _free_space(checks, config, checks.plan)


def _staged(checks: Checks, config: PlacedRun) -> None:
    """Whether the store has what stage_base_model will put there."""
    weights, on_hub = checks.weights, base_model.is_on_hub(config.base_model)
    quantised = weights is not None and bool(weights.quantised)
    if not on_hub and not quantised:
        return
    checks.converted = quantised and base_model.in_16bit(config.base_model, checks.revision) is not None
    checks.staged = checks.converted or (on_hub and base_model.staged(config.base_model, checks.revision) is not None)
    there = checks.converted if quantised else checks.staged
    size = weights.size / fit.GIB if weights else 0.0
    text = "is in the store already" if there else f"will be copied into the store, {size:.1f} GiB"
    checks.note("ok", "base model", f"{config.base_model} {text}")


def _newest_checkpoint(training_key: str) -> int:
    """The step of the newest finished checkpoint, 0 where there is none."""
    names = storage.sizes(storage.join(storage.root(), "checkpoints", training_key))
    steps = (re.fullmatch(rf"step-(\d+)/[^/]+/{re.escape(attempts.MANIFEST)}", name) for name in names)
    return max((int(step[1]) for step in steps if step), default=0)


def _free_space(checks: Checks, config: PlacedRun, plan: fit.Plan) -> None:
    free = storage.free_bytes(storage.root())
    written = checks.disk(config, plan)["store, written by this run"]
    if free is not None and free < written:
        text = f"{free / fit.GIB:.1f} GiB free, and this run writes {written / fit.GIB:.1f} GiB"
        advice = f"make room, or name another place in {storage.STORE_VARIABLE}"
        checks.note("fatal", "store", f"{storage.root()} has {text}: {advice}")
