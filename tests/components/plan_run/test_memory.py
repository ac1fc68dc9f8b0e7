"""The plan's bytes against real tensors: bitsandbytes, peft, AdamW and the allocator, on a CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MixtralConfig, PreTrainedConfig

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.models import cpu_attention, loading, lora, packed_attention
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.plan_run import activations, architecture, fit, memory

CONFIGS = Path(__file__).parent / "configs"
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 200,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=48, sliding_window=16),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
}
LENGTHS = (90, 41, 349)
TOKENS = sum(LENGTHS)


@pytest.fixture(scope="module", params=list(TINY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each architecture, saved."""
    path: Path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(TINY[request.param], dtype=torch.bfloat16).save_pretrained(path)
    return path


def trained(folder: Path, train: TrainConfig) -> Any:
    """The model as train_qlora sets it up: NF4, attention over packed conversations, peft's adapter in float32."""
    base = loading.load_quantized(folder)
    packed_attention.enable(base)
    model = lora.put_on(base, lora.config(train, base))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model.train()


def quantised_bytes(weight: Any) -> int:
    """Bytes of all tensors behind a 4-bit weight."""
    state = weight.quant_state
    parts = [weight.data, state.absmax, state.code]
    if state.nested:
        parts += [state.offset, state.state2.absmax, state.state2.code]
    return sum(part.untyped_storage().nbytes() for part in parts)


@pytest.mark.parametrize(
    "train",
    [
        TrainConfig(),
        TrainConfig(double_quant=False, compute_dtype="float16"),
        TrainConfig(quant_type="fp4", double_quant=False),
        TrainConfig(quant_type="fp4"),
    ],
    ids=["nf4", "nf4 once, float16", "fp4 once", "fp4"],
)
def test_weights_are_exactly_what_bitsandbytes_holds(folder: Path, train: TrainConfig) -> None:
    planned = {weight.name: weight for weight in architecture.read(folder, train).weights}
    real = dict(loading.load_quantized(folder, Quantization.of(train)).named_parameters())
    assert planned.keys() == real.keys()
    for name, weight in real.items():
        is_quantised = getattr(weight, "quant_state", None) is not None
        assert bool(planned[name].quantised) == is_quantised, name
        assert memory.weight_bytes(planned[name]) == (quantised_bytes(weight) if is_quantised else weight.nbytes), name


@pytest.mark.parametrize("double", [True, False])
def test_a_weight_that_fills_no_block_is_exact_too(double: bool) -> None:
    import bitsandbytes as bnb

    for shape in [(1, 1), (7, 9), (64, 64), (129, 131), (512, 513)]:
        layer = bnb.nn.Params4bit(torch.randn(shape), compress_statistics=double, quant_type="nf4").to("cpu")
        assert memory.quantised_bytes(shape[0] * shape[1], double) == quantised_bytes(layer), shape


@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit"])
def test_adapter_and_optimiser_are_exactly_what_peft_and_bitsandbytes_hold(folder: Path, optim: str) -> None:
    import bitsandbytes as bnb

    train = TrainConfig.parse(lora_r=29, optim=optim)
    planned = architecture.read(folder, train)
    parameters = [parameter for parameter in trained(folder, train).parameters() if parameter.requires_grad]
    assert sorted(planned.adapter) == sorted(tuple(parameter.shape) for parameter in parameters)
    assert memory.adapter_bytes(planned) == sum(parameter.nbytes for parameter in parameters)
    kind = bnb.optim.PagedAdamW32bit if optim == "paged_adamw_32bit" else bnb.optim.PagedAdamW8bit
    optimiser = kind(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    # The code book of 8-bit moments is one for all tensors.
    own = ("state1", "state2", "absmax1", "absmax2")
    states = [optimiser.state[parameter] for parameter in parameters]
    held = sum(state[name].nbytes for state in states for name in own if name in state)
    assert memory.optimiser_bytes(planned) == held


def timeline(model: Any, train: TrainConfig) -> tuple[int, int]:
    """Bytes that the CPU's allocator holds after a real forward pass, and the most there is in the backward pass."""
    from peft.helpers import disable_input_dtype_casting

    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    inputs = {
        "input_ids": torch.zeros(1, TOKENS, dtype=torch.long),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "cu_seq_lens_q": torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32),
    }
    backbone = model.get_base_model().base_model

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return backbone(**inputs, use_cache=False).last_hidden_state

    with disable_input_dtype_casting(model):
        output = forward()  # once before, so that caches are filled
        output.backward(torch.ones_like(output))
        del output
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as first:
            output = forward()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as second:
            output.backward(torch.ones_like(output))
    return changes(first)[-1], max(changes(second))


def changes(profiled: Any) -> list[int]:
    """The allocator's running total after each allocation and each release, from 0."""
    total, totals = 0, [0]
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        totals.append(total)
    return totals


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_the_allocator_holds(
    folder: Path, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10 %, of what is held from the forward to the backward pass, and of the highest point of the latter."""
    monkeypatch.setattr(cpu_attention, "MAX_TOKENS", 0)  # the plan is of a GPU, whose kernels hold no scores
    train = TrainConfig(lora_r=8, gradient_checkpointing=checkpointing)
    planned = activations.trace(folder, train, TOKENS)
    held, more = timeline(trained(folder, train), train)
    assert planned.saved == pytest.approx(held, rel=0.1)
    assert planned.saved + planned.backward == pytest.approx(held + more, rel=0.1)


def test_the_head_is_what_the_allocator_holds() -> None:
    tokens, hidden, vocabulary = 128, 64, 8192
    weight = torch.randn(vocabulary, hidden, dtype=torch.bfloat16)
    states = torch.randn(1, tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        logits = torch.nn.functional.linear(states, weight)
        torch.nn.functional.cross_entropy(logits.reshape(-1, vocabulary).float(), targets, reduction="sum").backward()
    planned = architecture.Architecture("", (), (), 1, hidden, vocabulary, 1.0)
    assert memory.head_bytes(planned, tokens) == pytest.approx(max(changes(profiled)), rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_many_layers_are_what_a_few_foretell(tmp_path: Path, checkpointing: bool) -> None:
    LlamaConfig(**{**SIZES, "num_hidden_layers": 13}).save_pretrained(tmp_path)
    train = TrainConfig(gradient_checkpointing=checkpointing)
    every = activations._run(tmp_path, train, 128, 13)
    few = activations.trace(tmp_path, train, 128)
    assert few.saved == every.saved
    assert few.saved + few.backward == pytest.approx(every.saved + every.backward, rel=0.01)


def anchor(name: str) -> tuple[architecture.Architecture, memory.Estimate]:
    """The QLoRA paper's set-up: rank 64 on all linear layers, one row of 512 tokens, checkpointing."""
    train = TrainConfig(lora_r=64, batch_tokens=512, gradient_checkpointing=True)
    found = architecture.read(CONFIGS / name, train)
    return found, memory.estimate(found, activations.trace(CONFIGS / name, train, 512), 512)


@pytest.mark.parametrize(("name", "gigabytes"), [("llama-2-7b", 3.87), ("llama-33b", 17.4), ("llama-65b", 34.5)])
def test_published_sizes_of_the_weights(name: str, gigabytes: float) -> None:
    _, found = anchor(name)
    digits = len(str(gigabytes).partition(".")[2])
    assert round((found.weights_nf4 + found.weights_16bit) / 1e9, digits) == gigabytes


def test_published_bits_a_parameter() -> None:
    numel = 1 << 30
    bits = 8 * memory.quantised_bytes(numel) / numel
    assert round(bits, 3) == 4.127
    once = 8 * memory.quantised_bytes(numel, double=False) / numel
    assert round(once, 3) == 4.5 and round(once - bits, 3) == 0.373


def test_a_65b_trains_under_48_gb_and_not_under_24() -> None:
    """As in the paper, the optimiser may be paged out to the host."""
    _, found = anchor("llama-65b")
    assert 24e9 < found.on_gpu_at_least < 48e9


def test_fused_experts_stay_in_16_bit() -> None:
    """bitsandbytes quantises linear layers only: seven eighths of a Mixtral keep 16 bits, and the plan says so."""
    found, estimate = anchor("mixtral-8x7b")
    assert found.in_fused_experts == 32 * 8 * 3 * 4096 * 14336
    assert estimate.weights_16bit > 90e9
    assert found.active_parameters == pytest.approx(12.7e9, rel=0.01)


def test_ddp_copies_gradients_and_fsdp_cuts_the_rest() -> None:
    train = TrainConfig(lora_r=64, batch_tokens=512, gradient_checkpointing=True)
    found = architecture.read(CONFIGS / "llama-2-70b", train)
    held = activations.trace(CONFIGS / "llama-2-70b", train, 512)
    one = memory.estimate(found, held, 512)
    ddp = memory.estimate(found, held, 512, gpus=4, strategy="ddp")
    fsdp = memory.estimate(found, held, 512, gpus=4, strategy="fsdp")
    assert ddp.total - one.total == memory.adapter_bytes(found)
    assert one.weights_nf4 / 4 < fsdp.weights_nf4 < 0.28 * one.weights_nf4  # the scales are not cut
    assert fsdp.total < 0.4 * one.total


def test_a_run_that_is_cut_is_planned_so() -> None:
    train = TrainConfig(batch_tokens=512, gradient_checkpointing=True, processes=2)
    whole = fit.plan(CONFIGS / "llama-2-70b", train, 512).estimate
    cut = fit.plan(CONFIGS / "llama-2-70b", train.model_copy(update={"fsdp": True}), 512).estimate
    assert cut.total < 0.65 * whole.total
    assert cut.total < 24 << 30 < whole.total
