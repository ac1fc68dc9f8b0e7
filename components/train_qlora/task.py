"""QLoRA training: the base in 4 bit, a LoRA adapter on its linear layers, supervised fine-tuning through TRL."""

import contextlib
import dataclasses
import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, loading, packable
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.registry import integrity
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, copies, keys, retry, storage
from qlora_pipelines.components.train_qlora import (
    memory,
    mlflow_run,
    supervisor,
    training,
    training_report,
    watchdog,
)
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints, refuse_other

Config = TrainConfig
LIBRARIES = ("qlora-pipelines", "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")


class Result(NamedTuple):
    """What came out.

    Mean loss over the supervised tokens of the first and of the last steps, in nats per token; optimiser steps made;
    peak memory in MiB, on the GPU or else of the process; where the adapter is in the store; and the SHA-256 of its
    manifest, which later steps compare with.
    """

    first_loss: float
    final_loss: float
    steps: int
    peak_mib: int
    adapter_uri: str
    adapter_digest: str


def run(
    config: TrainConfig,
    *,
    train_set: str,
    dataset_digest: str,
    base_uri: str,
    base_revision: str,
    training_key: str,
    adapter: str,
    report: str,
    tokenizer_uri: str = "",
    planned_gpu_mib: int = 0,
    planned_host_mib: int = 0,
) -> Result:
    """Trains the adapter, resuming from the newest whole checkpoint; or returns the one that this key already has.

    Args:
        config: the step's options.
        train_set: Parquet file that prepare_dataset wrote.
        dataset_digest: what prepare_dataset said it made; checked.
        base_uri: folder of the base model.
        base_revision: commit, or digest of the base's files; kept with the adapter.
        training_key: names the adapter, which is kept in the store under this key, and its checkpoints.
        adapter: folder to write: peft's adapter, the tokenizer and a manifest.
        report: HTML page to write.
        tokenizer_uri: folder of the tokenizer that made the data set; empty: the base's.
        planned_gpu_mib: memory that plan_run said training needs on a GPU; 0: not known.
        planned_host_mib: the same where there is no GPU.

    Raises:
        InputError: data of another digest or tokenizer, a target that matches no layer, a loss that is no number, a
            store that cannot be written, an adapter or a checkpoint of this key made from something else, too little
            memory or disk.
        TransientError: training died, and restarts brought it no further.
    """
    if config.packing == "auto":  # a step run by itself; plan_run has decided it for a whole run
        # A base that cannot be read is reported below, once.
        with contextlib.suppress(InputError), tempfile.TemporaryDirectory() as name:
            config = packable.decided(config, base_model.small_files(base_uri, base_revision, Path(name)))
    key_uri = storage.join(storage.root(), "adapters", training_key)
    made_from = {"key_format": keys.FORMAT, "base_revision": base_revision, "dataset_digest": dataset_digest}
    made_from |= config.key_fields()
    finished = attempts.find(key_uri)
    if finished is not None:
        refuse_other(finished.info, made_from, finished.uri)
        log(f"this training is finished already: {finished.uri}")
        attempts.clear(key_uri)
    else:
        uri = storage.join(storage.root(), "checkpoints", training_key)
        checkpoints = Checkpoints(uri, config.save_total_limit, made_from)
        storage.check_writable(uri)  # before a model is loaded
        # Nothing here imports PyTorch: what needs it is in the processes that `supervisor.run` starts.
        with (
            loading.hidden_gpus(config.use_cpu),
            retry.fail_fast(uri),
            watchdog.running(config.setup_limit_minutes),
            memory.explain(config, planned_gpu_mib, planned_host_mib),
            tempfile.TemporaryDirectory() as name,
            attempts.attempt(key_uri) as attempt,
        ):
            base = base_model.fetch(base_uri, Path(name) / "base", base_revision)
            base_model.check_names(str(base), (path.name for path in base.glob("*")))

            tokenizer = copies.download(tokenizer_uri, Path(name) / "tokenizer") if tokenizer_uri else base

            def begin(folder: Path) -> tuple[training.Job]:
                watchdog.start(config.setup_limit_minutes)
                _empty(attempt.folder)
                job = training.Job(
                    config=config,
                    train_set=train_set,
                    dataset_digest=dataset_digest,
                    base=str(base),
                    base_uri=base_uri,
                    tokenizer=str(tokenizer),
                    output=str(attempt.folder),
                    scratch=str(folder / "scratch"),
                    training_key=training_key,
                    checkpoints=checkpoints,
                    resumed=checkpoints.newest(folder / "checkpoint"),
                    planned_gpu_mib=planned_gpu_mib,
                    planned_host_mib=planned_host_mib,
                )
                watchdog.stop()  # each training process has its own limits
                return (job,)

            try:
                trained: training.Trained = supervisor.run(
                    training.train,
                    config.processes,
                    begin=begin,
                    reached=checkpoints.last_step,
                    max_restarts=config.max_restarts,
                    killed=memory.killed(config, planned_gpu_mib, planned_host_mib),
                )
            except BaseException as error:
                mlflow_run.end(training_key, error)
                raise
            watchdog.start(config.step_limit_minutes)
            # evaluate_model and dequantize_and_merge read `base_revision`, `quantization` and `quantised`, also in
            # the manifests of versions registered long ago: these names stay.
            made = {
                "config": config.model_dump(),
                "quantization": dataclasses.asdict(Quantization.of(config)),
                "quantised": trained.digests,
                "losses": trained.losses,
                "device": trained.device,
                "peak_mib": trained.peak_mib,
                "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
                "training_key": training_key,
                "base_uri": base_uri,
            }
            finished = attempt.commit(made_from | made)
    with tempfile.TemporaryDirectory() as name:
        storage.upload(copies.fetch_work(finished, Path(name)), adapter)
    losses, peak = finished.info["losses"], finished.info["peak_mib"]
    planned = planned_host_mib if finished.info.get("device") == "cpu" else planned_gpu_mib
    log(f"Memory at its peak: {peak:,} MiB" + (f"; the plan said {planned:,}" if planned else ""))
    training_report.write(config, losses, peak, planned, report)
    curve = training_report.means(losses)
    return Result(curve[0][1], curve[-1][1], len(losses), peak, finished.uri, integrity.digest(finished))


def _empty(folder: Path) -> None:
    """Removes what an earlier start of this attempt has written, so that the manifest will not list it."""
    for path in folder.glob("[!.]*"):  # hidden is the attempt's sign of life
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
