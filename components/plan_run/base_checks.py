"""What of a base's config.json would make a run fail, or come out badly, on the GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.models import clean_folder, loading, packed_attention
from qlora_pipelines.components.plan_run import trial


def check(files: Path, model: Any, config: PlacedRun) -> Iterator[tuple[str, str]]:
    """Level and text of what was found in the config; where nothing there is fatal, also how a small model trains.

    Args:
        files: folder with the base's config.json.
        model: the base without data.
        config: the whole run.
    """
    found = list(_described(files, model, config))
    yield from found
    if any(level == "fatal" for level, _ in found):
        return
    kind, tried = model.config.model_type, trial.run(files, model, config.for_step("train_qlora"))
    if tried.problem:
        yield "fatal", f"base model {config.base_model}: {kind} cannot be trained: {tried.problem}"
    elif tried.untried:
        yield "warning", f"training was not tried on a small {kind}: {tried.untried}"
    else:
        untried = "" if config.on_cpu else "; a GPU's kernels were not tried"
        yield "ok", f"a small {kind} trains: one step on the CPU{untried}"


def _described(files: Path, model: Any, config: PlacedRun) -> Iterator[tuple[str, str]]:
    described = loading.read_config(files)
    name = f"base model {config.base_model}"
    if described.get("auto_map"):
        yield "warning", f"{name}: it has code of its own (auto_map), which is not run"
    for found in clean_folder.found(files):
        yield "warning", f"{name}: {found}"
    if _has_an_encoder(files):
        yield "fatal", f"{name}: {model.config.model_type} has an encoder for its input; give a decoder-only model"
    elif _sees_what_follows(model.config):
        yield "fatal", f"{name}: {model.config.model_type} is an encoder, which sees what follows; give a decoder"
    if config.for_step("train_qlora").packing is True and (why := packed_attention.unsupported(model)):
        yield "fatal", f"{name}: {why}"
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or config.max_length
    if config.max_length > positions:
        learned = _has_learned_positions(model, positions)
        outcome = "it has no position beyond" if learned else "it was not trained beyond, and may do badly"
        yield (
            "fatal" if learned else "warning",
            f"{name}: max_length is {config.max_length}, and its config.json says {positions} positions: {outcome}",
        )


def _has_an_encoder(files: Path) -> bool:
    """Whether it is of a type with encoder and decoder, such as BART, be it only its decoder."""
    from transformers.models.auto import modeling_auto

    described = loading.described(files)
    translators = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.keys()
    translators -= modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.keys()  # those that listen are decoders
    return described.is_encoder_decoder or described.model_type in translators


def _sees_what_follows(described: Any) -> bool:
    """Whether it is an encoder: transformers loads BERT and the like as causal models even without `is_decoder`."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    return type(described) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(described, "is_decoder", False)


def _has_learned_positions(model: Any, positions: int) -> bool:
    """Whether positions are rows of a table, as in GPT-2 and OPT, and not computed, as with rotary embeddings."""
    import torch

    tokens = model.get_input_embeddings()
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not tokens)
    return any(table.num_embeddings >= positions for table in tables)
