"""Everything a run will reach for, tried at once: base, tokenizer, data, store and MLflow.

Each check gives findings; none stops another, so that a person mends all there is to mend in one go.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import json
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.core import attempts, base_model, chat, data_listing, forms, models, storage, tracking
from components.core.config import RunConfig
from components.core.errors import InputError
from components.plan_run import fit

SAMPLE = 1 << 18
"""Bytes of a data file that are read to look at its first rows."""
SAMPLE_ROWS = 200
"""Rows that are tokenised to reckon with."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found. `level` is `ok`, `warning` or `fatal`; `text` says what, and what to do."""

    level: str
    subject: str
    text: str


@dataclasses.dataclass
class Access:
    """What the checks found out; what could not be found out is empty, and a finding says why.

    `tokens_a_row` and `supervised`, the share of tokens that is, come from the first rows.
    """

    champion: str = ""
    revision: str = ""
    files: Path | None = None
    listing: data_listing.Listing = dataclasses.field(default_factory=dict)
    rows: int = 0
    tokens_a_row: float = 0.0
    supervised: float = 1.0
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
            _count(found, config)
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


def _count(found: Access, config: RunConfig) -> None:
    """Looks at each side's first rows, and reckons rows and tokens from them and the files' sizes."""
    for side, source in found.listing.items():
        path, _, _ = source["files"][0]
        uri = source["uri"] if source["uri"].endswith(path) else storage.join(source["uri"], path)
        if source["uri"].startswith("hf://") or path.lower().endswith((".parquet", ".zst", ".parquet.gz")):
            found.note("ok", "data", f"{side}: {path} is looked into by prepare_dataset, not here")
            continue
        text, size = _start(uri)
        rows = first_rows(text, path, uri)
        encoded = _encoded(rows[:SAMPLE_ROWS], uri, config, found.files)
        if side == "train" and encoded:
            total = sum(entry[1] for entry in source["files"])
            in_rows = sum(len(json.dumps(row)) for row in rows)
            factor = len(text) / size if path.endswith(".gz") else 1.0
            found.rows = max(1, round(total * factor * len(rows) / in_rows))
            tokens = sum(len(item.input_ids) for item in encoded)
            found.tokens_a_row = tokens / len(encoded)
            found.supervised = sum(item.supervised for item in encoded) / tokens


def _encoded(rows: list[dict[str, Any]], uri: str, config: RunConfig, files: Path | None) -> list[chat.Encoded]:
    """A file's first rows as they will be trained on; those that prepare_dataset will reject are left out.

    Raises:
        InputError: they are of no known form, so all will be rejected.
    """
    prepare = config.for_step("prepare_dataset")
    try:
        rows = [forms.renamed(row, prepare.columns) for row in rows]
    except ValueError as error:
        raise InputError(f"data {uri}: {error}") from None
    form = forms.most_common_form(rows) if prepare.form == "auto" else prepare.form
    if not form:
        columns = ", ".join(sorted(rows[0]))
        raise InputError(
            f"data {uri}: its rows are of no known form (columns {columns}); name theirs in options,"
            " prepare_dataset.columns"
        )
    assert files is not None
    tokenizer = models.load_tokenizer(files)
    encoded = []
    for row in rows:
        with contextlib.suppress(ValueError, InputError):
            found = forms.conversation(row, form)
            encoded.append(
                chat.encode(tokenizer, found.messages, config.max_length, tools=found.tools)
                if found.messages
                else chat.encode_spans(tokenizer, found.text, [(0, len(found.text))], config.max_length)
            )
    return encoded


def _start(uri: str) -> tuple[str, int]:
    """The file's first characters, unpacked, and how many bytes of it they are."""
    start = storage.read_bytes(uri, SAMPLE)
    data = zlib.decompressobj(wbits=31).decompress(start, SAMPLE * 4) if uri.lower().endswith(".gz") else start
    return data.decode("utf-8-sig", errors="ignore"), len(start)


def first_rows(text: str, path: str, uri: str) -> list[dict[str, Any]]:
    """The whole rows at the start of a file.

    Raises:
        InputError: the first row is none.
    """
    name = path.lower().removesuffix(".gz")
    rows: list[Any] = []
    if name.endswith(".csv"):
        rows = list(csv.DictReader(text.splitlines()))
    elif name.endswith(".json"):
        rows = _elements(text)
    else:
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
                continue
            break  # the last line of a sample may be cut; a first line that is no JSON leaves no rows
    if not rows or not isinstance(rows[0], dict):
        raise InputError(f"data {uri}: its first row is not a JSON object; see the README for the forms that are read")
    return [row for row in rows if isinstance(row, dict)]


def _elements(text: str) -> list[Any]:
    """The whole elements at the start of a JSON array."""
    decoder = json.JSONDecoder()
    rows: list[Any] = []
    position = text.find("[") + 1
    while position:
        while position < len(text) and text[position] in " \r\n\t,":
            position += 1
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            break
        rows.append(row)
    return rows


def finished(training_key: str, merge_key: str) -> list[Finding]:
    """What of this run's work lies finished in the store, so that it will not be done again."""
    findings = []
    for what, folder, key in (("adapter", "adapters", training_key), ("merged model", "merged", merge_key)):
        done = attempts.find(storage.join(storage.root(), folder, key))
        text = f"finished already: {done.uri}" if done else "not made yet"
        findings.append(Finding("ok", what, text))
    return findings
