"""Loading tokenizers and models the one way all steps load them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.models import clean_folder, linear_layers, published_quantization
from qlora_pipelines.components.core.models.blockwise_quantization import portable_quantization
from qlora_pipelines.components.core.models.quantization import Quantization

COMPUTE_DTYPE = "bfloat16"
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""Where CUDA reads which GPUs a process may see; set and empty: none."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model, with or without a chat template.

    Raises:
        InputError: it cannot be read, or has no special token.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise InputError(f"tokenizer in {folder}: no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # the library raises errors of its own for torn files
        raise InputError(f"tokenizer in {folder} cannot be read: {first_line(error)}") from None
    if tokenizer.pad_token is None:  # padding is masked: any token will do that is no text
        special = [token.content for token in tokenizer.added_tokens_decoder.values()]
        tokenizer.pad_token = tokenizer.eos_token or next(iter(special), None)
    if tokenizer.pad_token is None:
        raise InputError(
            f"tokenizer in {folder} has no special token, so nothing ends an answer: set eos_token in its"
            " tokenizer_config.json"
        )
    return tokenizer


@contextlib.contextmanager
def hidden_gpus(use_cpu: bool) -> Iterator[None]:
    """With `use_cpu`, this process and those it starts see no GPU; to be entered before anything asks for one.

    A node whose container runtime is NVIDIA's may show its GPUs to pods that asked for none. CUDA's own switch hides
    them from all libraries, so that none takes a GPU's memory on the side.
    """
    before = os.environ.get(VISIBLE_GPUS)
    if use_cpu:
        os.environ[VISIBLE_GPUS] = ""
    try:
        yield
    finally:
        os.environ.pop(VISIBLE_GPUS, None)
        if before is not None:
            os.environ[VISIBLE_GPUS] = before


def on_gpu() -> bool:
    """Whether this process computes on a GPU: there is one, and it is not hidden."""
    import torch

    return os.environ.get(VISIBLE_GPUS) != "" and torch.cuda.is_available()


def device() -> str:
    """This process' own GPU, `cuda:0` where it is the only process, or `cpu` where it has none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu() else "cpu"


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of what a tokenizer does: its vocabulary and rules, and its chat template."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    for option in ("truncation", "padding"):  # of the last call
        rules.pop(option, None)
    return hashlib.sha256(json.dumps([rules, tokenizer.chat_template], sort_keys=True).encode()).hexdigest()


def load_quantized(folder: Path, quantization: Quantization | None = None, for_sharding: bool = False) -> Any:
    """The base with its linear layers in 4 bit, the rest in 16 bit, on the GPU where there is one.

    Args:
        folder: the model's.
        quantization: how; None is NF4 with double quantisation and bfloat16 compute, as in the QLoRA paper (Dettmers et
            al. 2023, section 3).
        for_sharding: whether it will be sharded over several GPUs, none of which may have room for it: it stays on the
            host, and the 4-bit weights are kept in the dtype of all others, as FSDP wants it.
    """
    import bitsandbytes as bnb

    quantization = quantization or Quantization()
    dtype = quantization.compute_dtype
    kept = linear_layers.kept(empty_model(folder, dtype))
    if for_sharding:
        with portable_quantization(), _quantized_on(device()):
            config = quantization.as_transformers(storage=dtype, kept=kept)
            model = load_16bit(folder, dtype, quantization_config=config, device_map={"": "cpu"})
        model.__dict__.pop("hf_device_map", None)  # accelerate would take it for where the model stays
    else:
        with portable_quantization():
            model = load_16bit(folder, dtype, quantization_config=quantization.as_transformers(kept=kept))
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weight at the first forward without gradients,
            # for good: training then gets no gradients, silently, and dequantising gives garbage.
            module.support_avx512bf16_for_cpu = False
    return model


@contextlib.contextmanager
def _quantized_on(device: str) -> Iterator[None]:
    """Quantises a model that is loaded onto the host on a GPU, tensor by tensor: a CPU takes an hour for 70 B."""
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    convert = Bnb4bitQuantize.convert

    def convert_on_device(self: Any, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        moved = {
            name: [value.to(device) for value in values] if isinstance(values, list) else values.to(device)
            for name, values in input_dict.items()
        }
        return {name: value.to("cpu") for name, value in convert(self, moved, *args, **kwargs).items()}

    Bnb4bitQuantize.convert = convert_on_device
    try:
        yield
    finally:
        Bnb4bitQuantize.convert = convert


def load_16bit(folder: Path, dtype: str = COMPUTE_DTYPE, **options: Any) -> Any:
    """A model in 16 bit, on the GPU where there is one; safetensors only, no remote code.

    Raises:
        InputError: its weights are quantised.
    """
    import torch

    if published_quantization.config_of(folder):
        raise InputError(f"model {folder}: its weights are quantised; stage_base_model makes a copy of it in 16 bit")
    options = {"device_map": {"": device()}} | options
    loaded = auto_class(described(folder)).from_pretrained(
        str(clean_folder.view(folder)),
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if getattr(model.config, "rescale_every", 0):
        # For float16, RWKV halves weights in place when it is not training, and fails at those in 4 bit. bfloat16 needs
        # none of it.
        model.config.rescale_every = 0
    return loaded


def empty_model(folder: Path, dtype: str = COMPUTE_DTYPE) -> Any:
    """A model from its config.json alone: on the meta device, without weights, in the dtypes it is loaded in.

    Raises:
        InputError: there is no config.json, or transformers does not know the architecture.
    """
    import torch

    try:
        config = described(folder)
    except Exception as error:  # the library raises errors of its own for values that do not go together
        raise InputError(f"base model {folder}: {_said(error)}") from None
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    except Exception as error:  # whatever the class' own code raises, the base cannot be loaded
        raise InputError(f"base model {folder}: {_why_not_made(config, error)}") from None


def _why_not_made(config: Any, error: Exception) -> str:
    kind = config.model_type
    if config.is_encoder_decoder:
        return f"{kind} has an encoder for its input; give a decoder-only model"
    if kind.endswith("_assistant"):
        return f"{kind} drafts tokens for another model, and says nothing by itself; give that model"
    if isinstance(error, ImportError):
        missing = _said(error).partition(" but it was not found")[0]
        return f"transformers cannot load {kind}: {missing}; install it here and in the image"
    if "Unrecognized configuration class" in str(error):
        return f"transformers has no class that loads {kind} for text; give another base"
    return f"transformers cannot load {kind}: {_said(error)}"


def _said(error: Exception) -> str:
    """What an error says; a title that ends with a colon is followed by the lines of the error behind it."""
    behind = error.__cause__ if first_line(error).endswith(":") else None
    return first_line(behind if isinstance(behind, Exception) else error)


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a base by its own class, whole.

    A base that takes images too is often also among the causal models, as its language model alone. Then the class that
    its config.json names decides: what was published whole stays whole.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
    from transformers.models.auto import modeling_auto

    own, kind = (config.architectures or [""])[0], config.model_type
    tables = (
        (AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (AutoModelForImageTextToText, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        (AutoModelForMultimodalLM, modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
    )
    by_name = (auto for auto, names in tables if names.get(kind) == own)
    by_type = (auto for auto, names in tables if kind in names)
    return next(by_name, next(by_type, AutoModelForCausalLM))


def described(folder: Path) -> Any:
    """What transformers makes of a model's config.json, with what `clean_folder` switches off at its default."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(clean_folder.view(folder)), trust_remote_code=False)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        InputError: it cannot be read.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"base model {folder}: config.json cannot be read: {error}") from None
    return config
