"""What the checks before a run found out."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.data.listing import Listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import keys
from qlora_pipelines.components.plan_run import disk, fit, sampling, weight_files


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found. `level` is `ok`, `warning` or `fatal`; `text` says what, and what to do."""

    level: str
    subject: str
    text: str


@dataclasses.dataclass
class Checks:
    """What the checks found; what could not be found out is empty, and a finding says why.

    `config` is the run with all decided that is left to the base. `samples` holds what the first rows of each side
    tell, `weights` what the headers of the base's files do. `staged` says whether a hub's base is in the store already,
    `converted` whether the copy in 16 bit of quantised weights is. `run_keys` are there where nothing is fatal.
    """

    config: PlacedRun
    champion: str = ""
    registry: str = ""
    revision: str = ""
    files: Path | None = None
    listing: Listing = dataclasses.field(default_factory=dict)
    samples: dict[str, sampling.Sample] = dataclasses.field(default_factory=dict)
    weights: weight_files.Weights | None = None
    staged: bool = False
    converted: bool = False
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

    def disk(self, config: PlacedRun, plan: fit.Plan) -> dict[str, int]:
        """Bytes of disk by what they hold, as far as was found out."""
        weights = self.weights or weight_files.Weights({}, ())
        from_hub = base_model.is_on_hub(config.base_model) and not self.staged
        return disk.need(
            plan.architecture,
            plan.train,
            base_files=weights.sizes,
            copied_files=weights.published if from_hub else (),
            converted=bool(weights.quantised) and not self.converted,
            data_files=tuple(file[1] for source in self.listing.values() for file in source["files"]),
            sample=self.samples.get("train"),
        )

    def note(self, level: str, subject: str, text: str) -> None:
        """Adds a finding."""
        self.findings.append(Finding(level, subject, text))

    @contextlib.contextmanager
    def collect_errors(self, subject: str) -> Iterator[None]:
        """Turns an `InputError` into a fatal finding; where only the memory is not known, that is a warning."""
        try:
            yield
        except fit.UntraceableModel as error:
            self.note("warning", "memory", str(error))
        except InputError as error:
            self.note("fatal", subject, str(error))
