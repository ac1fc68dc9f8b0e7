"""Checks a run before anything expensive starts, and fixes all that could change under its name."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from components.core import base_model, data_listing, keys, models, storage, tracking
from components.core.config import OPTION_STEPS, RunConfig
from components.core.report import Report
from components.core.steps import log

Config = RunConfig


class Result(NamedTuple):
    """What later steps work from; the `*_options` are JSON of the options that are no parameters of their own."""

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


def run(config: RunConfig, *, report: str) -> Result:
    """Validates the run, resolves base, data and champion, and computes the three keys.

    Args:
        config: the whole run.
        report: path of the HTML report to write.

    Raises:
        InputError: the first thing found that would make the run fail later.
    """
    prepare, train, merge = (
        config.for_step(step) for step in ("prepare_dataset", "train_qlora", "dequantize_and_merge")
    )
    storage.write_bytes(storage.join(storage.root(), ".probe"), b"")
    champion = tracking.champion(tracking.client(), config.model_name)
    log(f"MLflow answers; today's champion of {config.model_name}: {champion or 'none'}")

    revision = base_model.resolve(config.base_model, config.base_revision)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_uri, tokenizer_digest = _tokenizer(config.base_model, revision, Path(folder), train.target_modules)
    log(f"base {config.base_model} at {revision[:19]}")

    listing = data_listing.make(config.dataset_uri, config.eval_dataset_uri)
    digest = data_listing.data_digest(listing)
    log(f"data: {sum(len(source['files']) for source in listing.values())} files, digest {digest[:12]}")

    data_key = keys.data_key(digest, prepare, tokenizer_digest)
    training_key = keys.training_key(revision, data_key, train, models.COMPUTE_DTYPE, processes=1)
    result = Result(
        base_revision=revision,
        tokenizer_uri=tokenizer_uri,
        listing_uri=data_listing.save(listing),
        data_digest=digest,
        champion_version=champion,
        data_key=data_key,
        training_key=training_key,
        merge_key=keys.merge_key(training_key, merge),
        prepare_options=_options(config, "prepare_dataset"),
        train_options=_options(config, "train_qlora"),
        evaluate_options=_options(config, "evaluate_model"),
        merge_options=_options(config, "dequantize_and_merge"),
    )
    _report(config, listing, result, report)
    return result


def _options(config: RunConfig, step: str) -> str:
    return json.dumps(config.options.get(step, {}), sort_keys=True)


def _tokenizer(base: str, revision: str, folder: Path, target_modules: str) -> tuple[str, str]:
    """Checks config and tokenizer, and puts them into the store, where steps without the hub's token read them."""
    files = base_model.small_files(base, revision, folder)
    models.check_targets(target_modules, models.linear_layers(files))
    models.load_tokenizer(files)
    names = sorted(
        path for pattern in base_model.SMALL_FILES for path in files.glob(pattern) if "index.json" not in path.name
    )
    digest = keys.digest({path.name: storage.sha256_file(path) for path in names if path.name != "config.json"})
    uri = storage.join(storage.root(), "tokenizers", digest)
    for path in names:
        storage.write_bytes(storage.join(uri, path.name), path.read_bytes())
    return uri, digest


def _report(config: RunConfig, listing: data_listing.Listing, result: Result, path: str) -> None:
    report = Report("Plan", "What this run works from; none of it changes while the run lasts.")
    rows: list[tuple[str, object]] = [
        ("base model", config.base_model),
        ("base revision", result.base_revision),
        ("champion today", result.champion_version or "none"),
        ("data digest", result.data_digest),
        ("data key", result.data_key),
        ("training key", result.training_key),
        ("merge key", result.merge_key),
    ]
    report.table(["", ""], rows)
    for side, source in listing.items():
        report.section("Training data" if side == "train" else "Evaluation data", source["uri"])
        report.table(["file", "bytes", "content"], source["files"])
    report.section("Options")
    for step in OPTION_STEPS:
        report.table([step, ""], [(name, str(value)) for name, value in config.for_step(step).model_dump().items()])
    report.write(path)
