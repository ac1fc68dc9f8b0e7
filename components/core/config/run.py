"""The options of a whole run."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from qlora_pipelines.components.core.config.base import Int, StepConfig, json_object, nearest, not_in_key
from qlora_pipelines.components.core.config.steps import OPTION_STEPS, STEPS, PrepareConfig, TrainConfig
from qlora_pipelines.components.core.errors import InputError

_PREPARE, _TRAIN = PrepareConfig.parse(), TrainConfig.parse()


class RunConfig(StepConfig):
    """A whole run: the few options people change, and `options` for all others by step."""

    renamed: ClassVar[dict[str, str]] = {"epochs": "num_train_epochs"}

    base_model: str = Field(description="folder or Hugging Face id of the base model", min_length=1)
    base_revision: str = Field("", description="branch, tag or commit of a Hugging Face model; empty: main")
    dataset_uri: str = Field(
        description="training data: file, folder, prefix in a bucket or Hugging Face id (org/name@revision)",
        min_length=1,
    )
    eval_dataset_uri: str = Field("", description="evaluation data; empty: eval_share of the training data")
    model_name: str = Field(description="name of the registered model in MLflow", min_length=1)
    max_length: Int = Field(_PREPARE.max_length, description="longest conversation, in tokens")
    num_train_epochs: float = Field(_TRAIN.num_train_epochs, description="passes over the training rows")
    learning_rate: float = Field(_TRAIN.learning_rate, description="peak learning rate")
    lora_r: Int = Field(_TRAIN.lora_r, description="rank of the adapter")
    seed: Int = Field(_TRAIN.seed, description="seed of order, initialisation and dropout")
    gpu_memory_gib: float = not_in_key(
        0.0, ge=0, description="memory of the GPU that the run will get, in GiB; 0: not checked"
    )
    options: Annotated[dict[str, dict[str, Any]], BeforeValidator(json_object)] = Field(
        {}, description="all other options: a JSON object by step"
    )

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        renamed = [
            f"options.{step}.{old} is now {new}"
            for step, given in self.options.items()
            if step in STEPS
            for old, new in STEPS[step].renamed.items()
            if old in given
        ]
        if renamed:
            raise ValueError("; ".join(renamed))
        wrong = [
            f"options.{step}: no such step{nearest(step, OPTION_STEPS)}"
            for step in self.options
            if step not in OPTION_STEPS
        ]
        for step in STEPS:
            try:
                self.for_step(step)
            except InputError as error:
                wrong.append(f"{step}: {error}")
        if not wrong and self.for_step("prepare_dataset").decontaminate_words and not self.eval_dataset_uri:
            wrong.append(
                "prepare_dataset: decontaminate_words compares with evaluation data: give eval_dataset_uri too"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def with_option(self, step: str, name: str, value: Any) -> Self:
        """The same run with another value of one option."""
        own = self.options.get(step, {}) | {name: value}
        return self.model_copy(update={"options": self.options | {step: own}})

    def for_step(self, step: str) -> Any:
        """The config of one step, as this run sets it."""
        fields = STEPS[step].model_fields
        own = {name: getattr(self, name) for name in type(self).model_fields if name in fields}
        return STEPS[step].parse(self.options.get(step, {}), **own)
