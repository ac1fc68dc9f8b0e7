"""Everything a run will reach for, tried at once: base, tokenizer, data, store and MLflow.

Each check gives findings; none stops another, so that a person mends all there is to mend in one go.
"""

import concurrent.futures
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.data.listing import Listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, loading
from qlora_pipelines.components.core.registry import champion, mlflow_client
from qlora_pipelines.components.core.runtime import load_libraries
from qlora_pipelines.components.core.sample_size import groups_needed
from qlora_pipelines.components.core.store import attempts, keys, storage
from qlora_pipelines.components.plan_run import base_checks, disk, fit, sampling, weight_files


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found. `level` is `ok`, `warning` or `fatal`; `text` says what, and what to do."""

    level: str
    subject: str
    text: str


@dataclasses.dataclass
class Access:
    """What the checks found out; what could not be found out is empty, and a finding says why.

    `samples` holds what the first rows of each side tell, `weights` what the headers of the base's files do; `staged`
    says whether a hub's base lies in the store already. `run_keys` are there where nothing is fatal.
    """

    champion: str = ""
    revision: str = ""
    files: Path | None = None
    listing: Listing = dataclasses.field(default_factory=dict)
    samples: dict[str, sampling.Sample] = dataclasses.field(default_factory=dict)
    weights: weight_files.Weights | None = None
    staged: bool = False
    plan: fit.Plan | None = None
    data_digest: str = ""
    tokenizer_digest: str = ""
    run_keys: keys.RunKeys | None = None
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def fatal(self) -> list[str]:
        """One line for each thing without which the run would fail."""
        return [finding.text for finding in self.findings if finding.level == "fatal"]

    @property
    def supervised(self) -> float:
        """The share of the training tokens that is supervised, 1 where it is not known."""
        return self.samples["train"].supervised if "train" in self.samples else 1.0

    def note(self, level: str, subject: str, text: str) -> None:
        """Adds a finding."""
        self.findings.append(Finding(level, subject, text))

    @contextlib.contextmanager
    def about(self, subject: str) -> Iterator[None]:
        """Turns an `InputError` into a fatal finding."""
        try:
            yield
        except InputError as error:
            self.note("fatal", subject, str(error))


def check(config: RunConfig, folder: Path) -> Access:
    """Tries everything at once.

    Args:
        config: the whole run.
        folder: an empty folder, for the base's small files.
    """
    found = Access()
    checks: list[Callable[[], None]] = [
        lambda: _store(found),
        lambda: _mlflow(found, config),
        lambda: _base(found, config, folder),
        lambda: _data(found, config),
    ]
    # Imported here once: two threads that import transformers at the same time can see it half made.
    load_libraries("peft", "transformers")
    with concurrent.futures.ThreadPoolExecutor(len(checks)) as pool:
        for job in [pool.submit(check) for check in checks]:
            job.result()
    if found.files and found.listing:
        _look(found, config, found.files)
    if found.files and found.listing and not found.fatal:
        with found.about("store"):
            _finished(found, config, found.files)
    order = {"fatal": 0, "warning": 1, "ok": 2}
    found.findings.sort(key=lambda finding: (order[finding.level], finding.subject, finding.text))
    return found


def _store(found: Access) -> None:
    with found.about("store"):
        storage.check_writable(storage.root())
        found.note("ok", "store", f"{storage.root()} can be written, read and deleted in")


def _mlflow(found: Access, config: RunConfig) -> None:
    with found.about("MLflow"):
        client = mlflow_client.connect()
        mlflow_client.check_registering(client)
        found.champion = champion.current_version(client, config.model_name)
        found.note("ok", "MLflow", f"answers and lets one register; champion of {config.model_name} today:"
                   f" {found.champion or 'none'}")  # fmt: skip
        if found.champion:
            champion.find(config.model_name, found.champion)  # what a new model is compared with must be there


def _base(found: Access, config: RunConfig, folder: Path) -> None:
    with found.about("base model"):
        found.revision = base_model.resolve(config.base_model, config.base_revision)
        files = base_model.small_files(config.base_model, found.revision, folder)
        found.note("ok", "base model", f"{config.base_model} can be read at {found.revision[:19]}, in safetensors")
        found.files = files
        with found.about("tokenizer"):
            loading.load_tokenizer(files)
            found.note("ok", "tokenizer", "can be read and has a chat template")
        described = loading.empty_model(files)
        for level, text in base_checks.check(files, described, config):
            found.note(level, "base model", text)
        with found.about("weights"):
            found.weights = weight_files.read(config.base_model, found.revision)
            level, text = weight_files.compare(found.weights.shapes, described)
            found.note(level, "weights", f"base model {config.base_model}: {text}")
        try:
            found.plan = fit.plan(files, config.for_step("train_qlora"), config.max_length)
            _memory(found, found.plan, config.gpu_memory_gib)
        except fit.Unplannable as error:
            found.note("warning", "memory", str(error))


def _memory(found: Access, plan: fit.Plan, gib: float) -> None:
    if plan.architecture.in_fused_experts:
        share = plan.architecture.in_fused_experts / plan.architecture.parameters
        found.note("warning", "memory", f"{share:.0%} of the parameters are fused experts, which stay in 16 bit")
    if gib:
        fits, text = fit.verdict(plan, int(gib * fit.GIB), f"a GPU of {gib:g} GiB")
        found.note("ok" if fits else "fatal", "memory", text if fits else f"the run {text}")


def _data(found: Access, config: RunConfig) -> None:
    with found.about("data"):
        found.listing = listing.make(config.dataset_uri, config.eval_dataset_uri)
        found.data_digest = listing.data_digest(found.listing)
        files = sum(len(source["files"]) for source in found.listing.values())
        found.note("ok", "data", f"{files} files, digest {found.data_digest[:12]}")


def _look(found: Access, config: RunConfig, files: Path) -> None:
    allowed = config.for_step("prepare_dataset").max_rejected_share
    for side, source in found.listing.items():
        with found.about("data"):
            sample = found.samples[side] = sampling.look(source, config, files)
            found.note("ok", "data", f"{side}: about {sample.rows:,} rows of form {sample.form},"
                       f" {sample.tokens_a_row:.0f} tokens a row, {sample.supervised:.0%} supervised")  # fmt: skip
            if sample.unusable > allowed * sample.looked_at:
                text = f"{sample.unusable} of the first {sample.looked_at} rows cannot be used ({sample.reason})"
                found.note("warning", "data", f"{side}: {text}; {allowed:.1%} of all are allowed")
    _held_out(found, config)


def _held_out(found: Access, config: RunConfig) -> None:
    """Warns where too few rows will be held out for the gate to decide anything."""
    share = config.for_step("prepare_dataset").eval_share
    sample = found.samples.get("eval") or found.samples.get("train")
    if sample is None:
        return
    rows = sample.rows if "eval" in found.listing else round(sample.rows * share)
    needed = groups_needed(1 - config.for_step("evaluate_model").confidence)
    if rows < needed:
        found.note("warning", "data", f"about {rows} rows to evaluate on: the gate can decide nothing on fewer than"
                   f" {needed}, and the model will not be registered; give more data or raise eval_share")  # fmt: skip


def _finished(found: Access, config: RunConfig, files: Path) -> None:
    """Forms the keys, and says what of this run's work lies in the store already, so that it will not be done again."""
    found.tokenizer_digest = base_model.tokenizer_digest(files)
    found.run_keys = keys.of_run(
        config,
        base_revision=found.revision,
        data_digest=found.data_digest,
        tokenizer_digest=found.tokenizer_digest,
    )
    adapter = attempts.find(storage.join(storage.root(), "adapters", found.run_keys.training_key))
    merged = attempts.find(storage.join(storage.root(), "merged", found.run_keys.merge_key))
    for what, done in (("adapter", adapter), ("merged model", merged)):
        found.note("ok", what, f"finished already: {done.uri}" if done else "not made yet")
    step = 0 if adapter else _checkpoint(found.run_keys.training_key)
    if not adapter:
        found.note("ok", "checkpoint", f"training goes on from step {step}" if step else "none; training begins anew")
    if base_model.is_on_hub(config.base_model):
        found.staged = attempts.find(base_model.place_in_store(config.base_model, found.revision)) is not None
        size = found.weights.size / fit.GIB if found.weights else 0.0
        text = "is in the store already" if found.staged else f"will be copied into the store, {size:.1f} GiB"
        found.note("ok", "base model", f"{config.base_model} {text}")
    if found.plan and not merged:
        _room(found, config, found.plan)


def _checkpoint(training_key: str) -> int:
    """The step of the newest finished checkpoint, 0 where there is none."""
    names = storage.sizes(storage.join(storage.root(), "checkpoints", training_key))
    steps = (re.fullmatch(rf"step-(\d+)/[^/]+/{re.escape(attempts.MANIFEST)}", name) for name in names)
    return max((int(step[1]) for step in steps if step), default=0)


def _room(found: Access, config: RunConfig, plan: fit.Plan) -> None:
    free = storage.free_bytes(storage.root())
    written = disk_of(found, config, plan)["store, written by this run"]
    if free is not None and free < written:
        found.note(
            "fatal",
            "store",
            f"{storage.root()} has {free / fit.GIB:.1f} GiB free, and this run writes {written / fit.GIB:.1f} GiB: make"
            f" room, or name another place in {storage.STORE_VARIABLE}",
        )


def disk_of(found: Access, config: RunConfig, plan: fit.Plan) -> dict[str, int]:
    """Bytes of disk by what they hold, as far as was found out."""
    return disk.need(
        plan.architecture,
        plan.train,
        base_files=found.weights.sizes if found.weights else (),
        from_hub=base_model.is_on_hub(config.base_model) and not found.staged,
        data_files=tuple(file[1] for source in found.listing.values() for file in source["files"]),
        sample=found.samples.get("train"),
    )
