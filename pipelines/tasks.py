"""The pipeline's tasks by the names that kfp's compiler gives them, their reports, and how a run of them can end."""

import enum

PLAN, PREPARE, TRAIN, REGISTER = "plan-run", "prepare-dataset", "train-qlora", "register-model"
NOTIFY = "notify"
"""The task that runs after all others, and says nothing of how the run ended."""
EVALUATE_TUNED, EVALUATE_MERGED = "evaluate-model", "evaluate-model-2"
REPORTS = {
    PLAN: "1-plan",
    PREPARE: "2-data",
    TRAIN: "3-training",
    EVALUATE_TUNED: "4-tuned",
    EVALUATE_MERGED: "5-merged",
}
"""Tasks with an output `report`: the name of that page in a local run's folder and in MLflow."""


class End(enum.IntEnum):
    """How a run ended; the numbers are the command's exit codes."""

    DONE = 0
    FAILED = 1
    GATE_SAID_NO = 3
    CANCELLED = 4
