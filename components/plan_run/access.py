"""Everything a run will reach for, tried at once: base, tokenizer, data, store and MLflow.

Each check gives findings; none stops another, so that a person mends all there is to mend in one go.
"""

import concurrent.futures
import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from components.core import attempts, base_model, champion, data_listing, models, storage, tracking
from components.core.config import RunConfig
from components.core.errors import InputError
from components.plan_run import architecture, fit, sampling, weight_files


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found. `level` is `ok`, `warning` or `fatal`; `text` says what, and what to do."""

    level: str
    subject: str
    text: str


@dataclasses.dataclass
class Access:
    """What the checks found out; what could not be found out is empty, and a finding says why.

    `tokens_a_row` and `supervised`, the share of tokens that is, come from the first rows; `weights_size` is
    that of the base's weight files in bytes.
    """

    champion: str = ""
    revision: str = ""
    files: Path | None = None
    listing: data_listing.Listing = dataclasses.field(default_factory=dict)
    rows: int = 0
    tokens_a_row: float = 0.0
    supervised: float = 1.0
    weights_size: int = 0
    plan: fit.Plan | None = None
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def fatal(self) -> list[str]:
        """One line for each thing without which the run would fail."""
        return [finding.text for finding in self.findings if finding.level == "fatal"]

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
    import peft  # noqa: F401
    import transformers  # noqa: F401

    with concurrent.futures.ThreadPoolExecutor(len(checks)) as pool:
        for job in [pool.submit(check) for check in checks]:
            job.result()
    if found.files and found.listing:
        with found.about("data"):
            _look(found, config, found.files)
    order = {"fatal": 0, "warning": 1, "ok": 2}
    found.findings.sort(key=lambda finding: (order[finding.level], finding.subject, finding.text))
    return found


def _store(found: Access) -> None:
    with found.about("store"):
        probe = storage.join(storage.root(), f"probe-{uuid.uuid4().hex}")
        storage.write_bytes(probe, b"written by plan_run, and deleted again")
        storage.read_bytes(probe)
        storage.delete(probe)
        found.note("ok", "store", f"{storage.root()} can be written, read and deleted in")


def _mlflow(found: Access, config: RunConfig) -> None:
    with found.about("MLflow"):
        client = tracking.client()
        tracking.check_registering(client)
        found.champion = tracking.champion(client, config.model_name)
        found.note("ok", "MLflow", f"answers and lets one register; champion of {config.model_name} today:"
                   f" {found.champion or 'none'}")  # fmt: skip
        if found.champion:
            champion.find(config.model_name, found.champion)  # what a new model is compared with must be there


def _base(found: Access, config: RunConfig, folder: Path) -> None:
    with found.about("base model"):
        found.revision = base_model.resolve(config.base_model, config.base_revision)
        files = base_model.small_files(config.base_model, found.revision, folder)
        found.note("ok", "base model", f"{config.base_model} can be read at {found.revision[:19]}, in safetensors")
        code = models.describe(files).get("auto_map")
        if code:
            found.note("warning", "base model", "it brings code of its own (auto_map); that is not run")
        found.files = files
        with found.about("tokenizer"):
            models.load_tokenizer(files)
            found.note("ok", "tokenizer", "can be read and has a chat template")
        described = architecture.skeleton(files)
        with found.about("weights"):
            weights = weight_files.read(config.base_model, found.revision)
            found.weights_size = weights.size
            level, text = weight_files.compare(weights.shapes, described)
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
        found.listing = data_listing.make(config.dataset_uri, config.eval_dataset_uri)
        files = sum(len(source["files"]) for source in found.listing.values())
        found.note("ok", "data", f"{files} files, digest {data_listing.data_digest(found.listing)[:12]}")


def _look(found: Access, config: RunConfig, files: Path) -> None:
    for side, source in found.listing.items():
        sample = sampling.look(source, config, files)
        if sample is None:
            name = source["files"][0][0]
            found.note("ok", "data", f"{side}: {name} is looked into by prepare_dataset, not here")
        elif side == "train" and sample.rows:
            found.rows, found.tokens_a_row, found.supervised = sample.rows, sample.tokens_a_row, sample.supervised


def finished(training_key: str, merge_key: str) -> list[Finding]:
    """What of this run's work lies finished in the store, so that it will not be done again."""
    findings = []
    for what, folder, key in (("adapter", "adapters", training_key), ("merged model", "merged", merge_key)):
        done = attempts.find(storage.join(storage.root(), folder, key))
        text = f"finished already: {done.uri}" if done else "not made yet"
        findings.append(Finding("ok", what, text))
    return findings
