"""What happens between the steps of a training: progress is logged, checkpoints are stored, hangs are ended."""

import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import Progress
from qlora_pipelines.components.train_qlora import launch, memory, watchdog
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints
from qlora_pipelines.components.train_qlora.mlflow_run import MlflowRun


class ProgressCallback(TrainerCallback):
    """Writes each step's figures to the log and to MLflow, and stops at a loss that is no number."""

    def __init__(self, trainer: Any, steps: int, done: int, run: MlflowRun) -> None:
        """Args: trainer: a PackedTrainer; steps: optimiser steps in all; done: those made; run: in MLflow."""
        self.trainer, self.run = trainer, run
        self.progress = Progress("training", steps, done=done)
        self.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Logs one step; called before a checkpoint of it could be written."""
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        # float16 starts with a loss scale that overflows, and its scaler skips those steps (Micikevicius et al. 2018,
        # Mixed Precision Training, section 3.2).
        if not math.isfinite(loss) or not (math.isfinite(norm) or args.fp16):
            raise InputError(
                f"the {'gradient' if math.isfinite(loss) else 'loss'} is no number at step {state.global_step}: lower"
                f" learning_rate (now {args.learning_rate:g}) or look at the data; the last checkpoint is kept"
            )
        processes = self.trainer.accelerator.num_processes
        rate = self.trainer.supervised_tokens * processes / (time.monotonic() - self.started)
        used = memory.peak_mib()
        if launch.rank() == 0:
            self.progress.at(state.global_step, f"loss {loss:.4f}, {rate:,.0f} supervised tokens/s, {used:,} MiB")
            self.run.log(
                state.global_step,
                {
                    "loss": loss,
                    "learning_rate": float(logs["learning_rate"]),
                    "grad_norm": norm,
                    "supervised_tokens_per_s": rate,
                    "memory_mib": float(used),
                },
            )


class CheckpointCallback(TrainerCallback):
    """Stores a checkpoint every `save_steps` steps or `save_minutes` minutes; ends a process that hangs."""

    def __init__(self, trainer: Any, config: TrainConfig, checkpoints: Checkpoints) -> None:
        """Args: trainer: writes into a scratch folder; config: how often; checkpoints: where they are kept."""
        self.trainer, self.config, self.checkpoints = trainer, config, checkpoints
        self.saved = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the time limit of the step."""
        watchdog.start(self.config.step_limit_minutes)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decides whether a checkpoint is due. The last step needs none: the adapter follows."""
        late = launch.broadcast(time.monotonic() - self.saved > self.config.save_minutes * 60)
        due = late or state.global_step % self.config.save_steps == 0
        control.should_save = due and state.global_step < state.max_steps
        watchdog.start(self.config.step_limit_minutes)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves what the trainer wrote to the store, once every process has written its part."""
        self.trainer.accelerator.wait_for_everyone()
        if launch.rank() == 0:
            written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.checkpoints.save(written, state.global_step)
        self.trainer.accelerator.wait_for_everyone()  # within this time limit, not within the next step's
        self.saved = time.monotonic()
