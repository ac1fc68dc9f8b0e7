from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.chat_template import Encoded
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, packed_attention
from qlora_pipelines.components.evaluate_model import offloading, prefix_cache, scored_models, scoring
from tests.components.dequantize_and_merge.conftest import save_adapter, save_base


def encoded(tokens: int, seed: int) -> Encoded:
    """Supervised in two places, as two answers are."""
    ids = torch.randint(3, 250, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    labels = [label if place % 7 > 3 else chat_template.IGNORED for place, label in enumerate(ids)]
    return Encoded(ids, labels)


ROWS = [encoded(5, 0), encoded(70, 1), encoded(12, 2), encoded(40, 3), encoded(41, 4)]


def alone(model: Any, item: Encoded) -> tuple[float, int]:
    """One conversation at a time with all logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([item.input_ids])).logits[0, :-1].float()
    targets = torch.tensor(item.labels[1:])
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=chat_template.IGNORED)
    return nll.item(), int((logits.argmax(1) == targets).sum())


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}


def tiny(**changed: Any) -> dict[str, Any]:
    return {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    } | changed


def architectures() -> dict[str, Any]:
    from transformers import Gemma2Config, GPTJConfig, GraniteConfig, LlamaConfig, MistralConfig

    return {
        "plain": LlamaConfig(**tiny()),
        "attention has a window": MistralConfig(**tiny(sliding_window=24)),
        "positions depend on the length": LlamaConfig(**tiny(rope_parameters=DYNAMIC)),
        "attention cannot be exchanged": GPTJConfig(vocab_size=512, n_embd=64, n_layer=2, n_head=4, rotary_dim=8),
        "logits are scaled after the head": GraniteConfig(**tiny(logits_scaling=8.0)),
        "logits and attention scores are capped": Gemma2Config(**tiny(head_dim=16, final_logit_softcapping=0.5)),
    }


PREFIX = encoded(20, 9).input_ids
"""A system prompt."""
PREFIXED = [
    Encoded(PREFIX + row.input_ids, [chat_template.IGNORED] * len(PREFIX) + row.labels)
    for row in [*ROWS, encoded(300, 5)]
]


@pytest.mark.parametrize("rows", [ROWS, PREFIXED], ids=["no shared prefix", "a shared prefix"])
@pytest.mark.parametrize("name", architectures())
@pytest.mark.parametrize("batch_tokens", [16, 64, 1024])
def test_scores_are_those_of_each_conversation_alone(
    name: str, batch_tokens: int, rows: list[Encoded], monkeypatch: Any
) -> None:
    """Packed, through the head in chunks: the same as one row at a time with all logits, whatever the architecture."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architectures()[name], dtype=torch.float32).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # logits large enough for a cap to show
    monkeypatch.setattr(scoring, "LOGITS", {"cpu": 5 * 512})
    found = scoring.score(model, rows, batch_tokens, "cpu", "it")
    for (nll, right), item in zip(found, rows, strict=True):
        assert (nll, right) == (pytest.approx(alone(model, item)[0], rel=1e-5), alone(model, item)[1])


def test_no_more_logits_are_held_than_allowed(tiny_model: Path, monkeypatch: Any) -> None:
    model = loading.load_16bit(tiny_model).eval()
    seen, layer = [], []
    model.get_output_embeddings().register_forward_hook(lambda head, given, logits: seen.append(logits.numel()))
    model.get_decoder().layers[0].register_forward_hook(lambda *_: layer.append(1))
    monkeypatch.setattr(scoring, "LOGITS", {"cpu": 4096})
    scoring.score(model, ROWS, 1024, "cpu", "it")
    supervised = sum(item.supervised for item in ROWS) * model.config.vocab_size
    assert max(seen) <= 4096 < supervised
    assert sum(seen) == supervised, "only supervised positions go through the head"
    assert len(layer) == 1, "the layers run once, however many turns the head takes"


def test_a_shared_prefix_goes_through_the_layers_once(tiny_model: Path) -> None:
    model = loading.load_16bit(tiny_model).eval()
    seen = []
    model.get_decoder().layers[0].register_forward_hook(lambda layer, given, hidden: seen.append(hidden.shape[1]))
    scoring.score(model, PREFIXED, 1024, "cpu", "it")
    assert seen == [len(PREFIX), sum(len(row.input_ids) - len(PREFIX) for row in PREFIXED)]


def test_a_prefix_is_not_used_where_positions_depend_on_the_length_of_what_is_read() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    for rope, expected in ((None, len(PREFIX)), (DYNAMIC, 0)):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**tiny(rope_parameters=rope))).eval()
        with packed_attention.enabled(model), torch.no_grad():
            assert prefix_cache.prefill(model, model.get_decoder(), PREFIXED, "cpu")[0] == expected


def test_a_prefix_is_not_used_where_the_layers_keep_nothing_of_it() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    model = AutoModelForCausalLM.from_config(LlamaConfig(**tiny()))
    assert prefix_cache.prefill(model, lambda **_: None, PREFIXED, "cpu") == (0, None)


def test_a_model_that_gives_all_logits_whatever_it_is_asked_for_scores_the_same(
    tiny_model: Path, monkeypatch: Any
) -> None:
    model = loading.load_16bit(tiny_model).eval()
    forward, expected = model.forward, scoring.score(model, ROWS, 1024, "cpu", "it")
    monkeypatch.setattr(model, "forward", lambda logits_to_keep, **inputs: forward(**inputs))
    assert scoring.score(model, ROWS, 1024, "cpu", "it") == expected


def test_a_model_that_gives_logits_at_other_positions_is_refused(tiny_model: Path, monkeypatch: Any) -> None:
    model = loading.load_16bit(tiny_model).eval()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda logits_to_keep, **inputs: forward(logits_to_keep=3, **inputs))
    with pytest.raises(InputError, match="LlamaForCausalLM gives logits at other positions than it is asked for"):
        scoring.score(model, ROWS, 1024, "cpu", "it")


def test_a_shared_prefix_ends_before_what_predicts_the_first_answer() -> None:
    """The token that predicts it differs from row to row, in what it is asked for if not in what it is."""
    answer = Encoded(PREFIX, [chat_template.IGNORED] * 12 + PREFIX[12:])
    assert prefix_cache.shared_prefix([answer, answer]) == PREFIX[:11]
    assert prefix_cache.shared_prefix([answer, Encoded(PREFIX[:9], [chat_template.IGNORED] * 9)]) == PREFIX[:8]
    assert prefix_cache.shared_prefix([answer]) == prefix_cache.shared_prefix([answer, encoded(30, 7)]) == []


def test_log_likelihoods_are_those_of_lm_eval(tiny_model: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    tokenizer, model = loading.load_tokenizer(tiny_model), loading.load_16bit(tiny_model).float().eval()
    rows = [encoded(n, n) for n in (9, 30, 31, 55)]
    rows = [Encoded(item.input_ids, [chat_template.IGNORED] * 4 + item.input_ids[4:]) for item in rows]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=512)
    requests = [(("", ""), item.input_ids[:4], item.input_ids[4:]) for item in rows]
    theirs = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    for (nll, _), (likelihood, _) in zip(scoring.score(model, rows, 64, "cpu", "it"), theirs, strict=True):
        assert nll == pytest.approx(-likelihood, abs=1e-3)


def test_a_model_offloaded_to_memory_and_disk_scores_the_same(tiny_model: Path) -> None:
    whole = loading.load_16bit(tiny_model).eval()
    expected = scoring.score(whole, PREFIXED, 64, "cpu", "it")
    size = sum(parameter.numel() * 2 for parameter in whole.parameters())
    with offloading.load_16bit(tiny_model, {"cpu": int(0.7 * size)}) as (model, offloaded):
        assert offloaded and "disk" in model.hf_device_map.values()
        found = scoring.score(model.eval(), PREFIXED, 64, "cpu", "it")
    assert found == [(pytest.approx(nll), right) for nll, right in expected]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_adapter_on_an_offloaded_base_scores_the_same(tied: bool, tmp_path: Path, tiny_model: Path) -> None:
    from peft import PeftModel

    base = save_base(tmp_path / "base", tiny_model, tied=tied)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    assert offloading.can_attach(str(adapter))
    plain = loading.load_16bit(base).eval()
    without = scoring.score(plain, PREFIXED, 64, "cpu", "")
    expected = scoring.score(PeftModel.from_pretrained(plain, str(adapter)).eval(), PREFIXED, 64, "cpu", "")
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    with offloading.load_16bit(base, {"cpu": int(0.7 * size)}) as (model, offloaded):
        assert "disk" in model.hf_device_map.values()
        found = scoring.score(offloading.attach(model, str(adapter), offloaded), PREFIXED, 64, "cpu", "")
    assert found == [(pytest.approx(nll), right) for nll, right in expected] and found != without


def test_an_adapter_that_needs_its_base_whole_is_not_put_on_an_offloaded_one(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    load = offloading.load_16bit
    monkeypatch.setattr(offloading, "load_16bit", lambda folder: load(folder, {"cpu": 10_000}))
    assert scored_models.on_original(EvaluateConfig(), [], tiny_model, str(adapter)) is None
    assert "this adapter needs its base whole" in capsys.readouterr().out


def test_main_memory_is_the_containers_where_it_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "CGROUP", tmp_path)
    machine = offloading.free_memory()
    for name, content in {"current": "5000", "stat": "anon 3000\nfile 2000\n", "max": "max"}.items():
        (tmp_path / f"memory.{name}").write_text(content)
    assert offloading.free_memory() == pytest.approx(machine, rel=0.2) and machine > 1 << 20
    (tmp_path / "memory.max").write_text("8000\n")
    assert offloading.free_memory() == 5000


def test_a_loss_that_is_no_number_names_the_row(tiny_model: Path) -> None:
    tokenizer, model = loading.load_tokenizer(tiny_model), loading.load_16bit(tiny_model).eval()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    sample = Sample("abcdef0123456789", [], ROWS[1])
    with pytest.raises(InputError, match="tuned gives a loss that is not a number on row abcdef012345"):
        scored_models.score_model("tuned", EvaluateConfig(), model, tokenizer, [sample])


def test_a_model_that_was_scored_can_still_be_trained(tiny_model: Path) -> None:
    """bitsandbytes would repack 4-bit weights for good at a forward without gradients, on some CPUs."""
    from peft import LoraConfig, get_peft_model

    def gradients(scored: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = get_peft_model(loading.load_quantized(tiny_model), LoraConfig(target_modules="all-linear"))
        if scored:
            scoring.score(model.eval(), ROWS, 64, "cpu", "it")
        item = ROWS[1]
        model.train()(input_ids=torch.tensor([item.input_ids]), labels=torch.tensor([item.labels])).loss.backward()
        return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}

    before, after = gradients(scored=False), gradients(scored=True)
    assert before.keys() == after.keys() and any(grad.abs().sum() > 0 for grad in after.values())
    for name, grad in before.items():
        assert torch.equal(grad, after[name]), name
