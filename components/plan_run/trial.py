"""One optimiser step on a small model of the base's own kind, on the CPU: what would fail in training fails here.

The model is loaded, adapted and packed by the functions that training uses. What only a GPU shows is not tried: its
kernels and their precision.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.data import chat_template, packing
from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.models import linear_layers, loading, lora, packed_attention, supervised_loss
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.runtime import one_thread_per_operation
from qlora_pipelines.components.plan_run import small_model

LARGEST = 400_000_000
"""Parameters of a model that is still tried; one that cannot be made smaller would take too long."""
LENGTHS = (150, 24, 33)
"""Tokens of the conversations: other lengths than a window or a chunk has, and more than Mamba's convolution."""
APART = 0.1
"""Nats per token by which a packed conversation may differ from itself alone: 16 bit, and experts that round over."""
OTHER_INPUTS = re.compile(r"pixel_values|image|input_features|audio|protein")
"""In what a model says that has not got what it needs next to text."""
LEAK = 0.002
"""The share of their spread by which logits may change with later tokens: experts' sums are rounded otherwise then."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a step showed: an empty `problem`, or what failed; `untried` says what could not be found out."""

    problem: str = ""
    untried: str = ""


def run(folder: Path, model: Any, train: TrainConfig) -> Trial:
    """Trains a small model of the base's kind for one step.

    Args:
        folder: has the base's config.json.
        model: the base without data.
        train: the options of training, `packing` decided.
    """
    try:
        lora.config(train, model)
    except InputError:
        return Trial()  # whoever counts the memory of the whole model reports what is wrong with the options
    try:
        small = _small(folder, model, train)
        lora.config(train, small)  # it may have none of the layers that are named
        size = sum(parameter.numel() for parameter in small.parameters())
    except Exception as error:  # sizes that do not go together are no fault of the base
        return Trial(untried=f"no small model could be made of it ({first_line(error)})")
    if size > LARGEST:
        return Trial(untried=f"the smallest model of its kind has {size / 1e6:.0f} M parameters, too many to try")
    try:
        with tempfile.TemporaryDirectory() as place, loading.hidden_gpus(True), one_thread_per_operation():
            small.save_pretrained(place)
            del small
            return Trial(problem=next(_problems(Path(place), train, set(linear_layers.adapted(model))), ""))
    except InputError as error:
        return Trial(problem=str(error))
    except Exception as error:  # whatever the model's own code raises, training would meet it too
        said = f"{type(error).__name__}: {first_line(error)}"
        if OTHER_INPUTS.search(said):
            return Trial(problem=f"it does not take text alone ({said}); give a base that does")
        return Trial(problem=f"{said}; where that is no fault of the options, give another base")


def _small(folder: Path, model: Any, train: TrainConfig) -> Any:
    import torch
    from transformers import set_seed

    config = small_model.smaller(loading.described(folder), model)
    with torch.device("meta"):
        meta = loading.auto_class(config).from_config(config)
    if sum(parameter.numel() for parameter in meta.parameters()) > LARGEST:
        return meta
    state = torch.get_rng_state()
    set_seed(train.seed)
    try:
        made = loading.auto_class(config).from_config(config, dtype=torch.bfloat16)
        for parameter in made.parameters():
            if parameter.ndim < 2:  # scales begin at 0 or 1, and at 0 they would let no gradient through
                parameter.data += 0.1 * torch.rand_like(parameter)
        return made
    finally:
        torch.set_rng_state(state)


def _problems(folder: Path, train: TrainConfig, adapted_in_full: set[str]) -> Iterator[str]:
    """What is wrong with training a model, one after the other; nothing: it trains.

    `adapted_in_full` are the layers of the base that `all-linear` means. In the small model layers may be among them
    that share their weights in the base, as in Zamba2, and have none to share them with here.
    """
    import torch
    from peft.helpers import disable_input_dtype_casting

    model = loading.load_quantized(folder, Quantization.of(train.model_copy(update={"compute_dtype": "bfloat16"})))
    items = _conversations(model)
    if _sees_what_follows(model, items[1]):
        yield "what it says of a token changes with the tokens after it, as in an encoder; give a decoder"
    if train.packing:
        alone = [_logits(model, [item]) for item in items]
        packed_attention.enable(model)
        apart = _divergence(torch.cat(alone), _logits(model, items))
        if not apart < APART:
            yield f"packed conversations would mix: they are {apart:.2g} nats from those alone; leave packing at auto"
    adapter = lora.config(train, model)
    if train.target_modules == lora.ALL:
        adapter.target_modules = adapted_in_full & set(linear_layers.adapted(model))
    adapted = lora.put_on(model, adapter)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    for name, parameter in trained.items():
        parameter.data = parameter.data.to(torch.float32)
        if ".lora_B." in name or ".lora_embedding_B." in name:  # at 0, no gradient would reach A
            parameter.data.normal_(std=0.02)
    if train.gradient_checkpointing:
        adapted.gradient_checkpointing_enable()
        adapted.enable_input_require_grads()
    adapted.train()
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    with disable_input_dtype_casting(adapted), torch.autocast("cpu", torch.bfloat16):
        for row in [items] if train.packing else [[item] for item in items]:
            loss, _, _ = supervised_loss.total(adapted, packing.collate([packing.joined(row)]))
            if not loss.isfinite():
                yield "the loss is no number"
            loss.backward()
    yield from _untrained(trained)
    optimiser.step()
    still = [name for name, parameter in trained.items() if parameter.grad is not None and parameter.grad.any()]
    if stuck := [name for name in still if torch.equal(before[name], trained[name].detach())]:
        yield f"a step does not move the adapter of {_layer(stuck[0])}"
    for item in items:  # some models compute otherwise when they are not trained, as evaluation has them
        if not _logits(adapted, [item]).isfinite().all():
            yield "out of training, its logits are no numbers"


def _conversations(model: Any) -> list[chat_template.Encoded]:
    """Conversations of random tokens, none of which the model takes for an image; the second half is supervised."""
    import torch

    made, generator = [], torch.Generator().manual_seed(0)
    ends = model.get_input_embeddings(), linear_layers.head(model)  # some have more embeddings than the head has rows
    most = min(end.weight.shape[0] for end in ends) - 64
    for length in LENGTHS:
        ids = torch.randint(most // 8, most, (length,), generator=generator).tolist()
        labels = [chat_template.IGNORED] * (length // 2) + ids[length // 2 :]
        made.append(chat_template.Encoded(ids, labels))
    return made


def _sees_what_follows(model: Any, item: chat_template.Encoded) -> bool:
    """Whether the logits of a conversation's first half depend on its second."""
    half, found = len(item.input_ids) // 2, []
    for token in item.input_ids[:2]:  # one token over and over: what many tokens add must not cancel out
        ids = item.input_ids[:half] + [token] * (len(item.input_ids) - half)
        found.append(_logits(model, [chat_template.Encoded(ids, item.labels)])[:half])
    one, other = found
    return bool((one - other).abs().mean() > LEAK * one.std())


def _logits(model: Any, items: list[chat_template.Encoded]) -> Any:
    import torch

    inputs = packing.collate([packing.joined(items)])
    inputs.pop("labels")
    with torch.no_grad():
        return model.eval()(**inputs, use_cache=False).logits[0].float()


def _divergence(one: Any, other: Any) -> float:
    """Mean of KL(one || other) over the tokens, in nats."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def _untrained(trained: dict[str, Any]) -> Iterator[str]:
    """Adapters that no gradient reaches. An expert that no token was sent to may have none; all of its kind may not."""
    reached: dict[str, bool] = {}
    for name, parameter in trained.items():
        kind = re.sub(r"\.experts\.\d+\.", ".experts.*.", name)
        reached[kind] = reached.get(kind, False) or bool(parameter.grad is not None and parameter.grad.any())
    if dead := [name for name, there in reached.items() if not there]:
        share = f"{len(dead)} of {len(reached)} tensors of the adapter"
        yield f"no gradient reaches {share}, such as those of {_layer(dead[0])}"


def _layer(name: str) -> str:
    """The layer that a tensor of an adapter belongs to."""
    return name.partition(".lora_")[0].removeprefix("base_model.model.")
