"""Public benchmarks through lm-eval itself, imported only where its tasks are asked for."""

import importlib.util
import logging
from typing import Any

from qlora_pipelines.components.core.errors import InputError, first_line

FILE = ".yaml"


def are_names(tasks: list[str]) -> bool:
    """Whether none of the tasks is a file, whose content may change under its name."""
    return not any(task.endswith(FILE) for task in tasks)


def check(tasks: list[str]) -> None:
    """Checks, before a model is loaded, that lm-eval is there and knows the tasks.

    Raises:
        InputError: it is not, or does not.
    """
    if not tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            f"lm_eval_tasks {', '.join(tasks)}: lm-eval is not installed: pip install 'qlora-pipelines[lm-eval]'"
        )
    known = set(_manager(tasks).all_tasks)
    for task in tasks:
        if not task.endswith(FILE) and task not in known:
            raise InputError(f"lm_eval_tasks: lm-eval knows no task {task}; `lm-eval ls tasks` names those there are")


def run(model: Any, tokenizer: Any, tasks: list[str], batch_size: int) -> dict[str, float]:
    """A model's figures on lm-eval's tasks, by `task/metric`.

    Args:
        model: causal language model in eval mode.
        tokenizer: its tokenizer.
        tasks: names of tasks, or paths of a task's YAML file.
        batch_size: rows per forward pass.

    Raises:
        InputError: a task's data cannot be read.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        found = simple_evaluate(
            HFLM(pretrained=causal, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=_manager(tasks),
            bootstrap_iters=0,
            log_samples=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"lm_eval_tasks {', '.join(tasks)}: {first_line(error)}") from None
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, figures in found["results"].items()
        for metric, value in figures.items()
        if isinstance(value, int | float) and "stderr" not in metric and metric != "sample_len"
    }


def _manager(tasks: list[str]) -> Any:
    """What finds lm-eval's tasks; its own, thousands of them, are read only where one is asked for by name."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=not all(task.endswith(FILE) for task in tasks))
