"""Prompts computed once: the same numbers and gradients as whole rows, and models that can't are found out."""

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, Qwen3Config, Qwen3ForCausalLM

from entrostat.learner import shared_prompt
from entrostat.learner.batching import Sample
from entrostat.learner.objective import Objective
from entrostat.learner.policy import Policy, freeze
from entrostat.learner.shared_prompt import objection
from tests.made_samples import accumulated, assert_as_whole_rows, objective, samples_of
from tests.tiny_policy import WORDS, in_float64, loaded, make_policy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    torch.set_num_threads(1)
    return in_float64(loaded(make_policy(tmp_path_factory.mktemp("policy"))))


def assert_same(policy: Policy, samples: list[Sample], wanted: Objective, reference: Policy | None = None) -> None:
    assert policy.shares_prompts
    assert_as_whole_rows(policy, samples, wanted, reference)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 8), min_size=1, max_size=4)), min_size=1, max_size=5),
    st.integers(1, 120),
    st.integers(0, 2**16),
)
@settings(max_examples=25)
def test_loss_gradient_and_measurements_are_those_of_whole_rows(
    exact: Policy, groups: list[tuple[int, list[int]]], budget: int, seed: int
) -> None:
    assert_same(exact, samples_of(seed, groups), objective(budget))


@pytest.mark.parametrize("budget", [1, 30, 60, 10_000])
@pytest.mark.parametrize(
    "groups",
    [
        [(5, [4, 4, 4]), (5, [2, 7])],
        [(5, [1, 1, 1]), (3, [1])],
        [(2, [8, 1, 3, 1, 5]), (9, [1]), (4, [6, 6])],
    ],
    ids=["prompts of one length", "responses of one token", "prompts of several lengths and a single sample"],
)
def test_special_shapes_are_those_of_whole_rows(
    exact: Policy, budget: int, groups: list[tuple[int, list[int]]]
) -> None:
    assert_same(exact, samples_of(0, groups), objective(budget))


def test_the_pull_to_a_reference_is_that_of_whole_rows(tmp_path: Path) -> None:
    policy, reference = (in_float64(loaded(make_policy(tmp_path / name))) for name in ("policy", "reference"))
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in reference.model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    samples = samples_of(1, [(5, [4, 2, 6]), (3, [5, 1])])
    assert_same(policy, samples, objective(60, kl=0.5), freeze(reference))
    measured, _ = accumulated(policy, samples, objective(60, kl=0.5), reference)
    assert measured.terms.kl < 0
    assert all(weight.grad is None for weight in reference.model.parameters())


def test_a_reference_that_can_not_share_is_asked_for_whole_rows(tmp_path: Path) -> None:
    policy = loaded(make_policy(tmp_path))
    reference = dataclasses.replace(freeze(loaded(tmp_path)), shares_prompts=False)
    measured, _ = accumulated(policy, samples_of(1, [(5, [4, 2, 6])]), objective(60, kl=0.5), reference)
    assert measured.terms.kl == pytest.approx(0.0, abs=1e-12)  # two passes of float32
    assert measured.padding_share == pytest.approx(6 / 33)  # rows of 9, 7 and 11


def test_each_prompt_is_computed_once_and_each_response_token_once(tmp_path: Path) -> None:
    policy = loaded(make_policy(tmp_path))
    read: list[int] = []
    policy.model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(given[0].numel()))
    samples = samples_of(0, [(10, [5] * 16), (10, [5] * 16)])
    measured, _ = accumulated(policy, samples, objective(60))
    assert measured.padding_share == 0.0
    # 40 tokens are left for responses, 8 of 5 tokens; of each the last is not read.
    assert read == [20, *[8 * 4] * 4]


def test_a_model_with_absolute_positions_shares_prompts_too(tmp_path: Path) -> None:
    make_policy(tmp_path)  # for its tokenizer
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    policy = loaded(tmp_path)
    policy.model.double()
    assert_same(policy, samples_of(0, [(5, [4, 2, 6]), (3, [5, 1])]), objective(40))


def test_bfloat16_weights_prove_themselves(tmp_path: Path) -> None:
    policy = loaded(make_policy(tmp_path, dtype=torch.bfloat16), dtype="bfloat16")
    assert policy.shares_prompts
    _, gradients = accumulated(policy, samples_of(0, [(5, [4] * 16)]), objective(40))
    assert all(gradient.dtype == torch.bfloat16 and gradient.isfinite().all() for gradient in gradients.values())


def test_what_many_micro_batches_owe_one_prompt_adds_up_in_float32(tmp_path: Path) -> None:
    policy = loaded(make_policy(tmp_path, dtype=torch.bfloat16), dtype="bfloat16")
    shared = policy.prompts([np.array([3, 4, 5], np.int32)])
    row = torch.zeros(1, dtype=torch.int64)
    for _ in range(300):
        policy.hidden_after(shared, row, row[:, None][:, :0]).sum().backward()
    # In bfloat16 a sum of ones stops at 256.
    assert shared.left[-1].grad is not None
    assert shared.left[-1].grad.unique().tolist() == [300.0]


def test_gradient_checkpointing_computes_whole_rows_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_policy(tmp_path)
    with caplog.at_level(logging.INFO, "entrostat.learner.policy"):
        assert loaded(tmp_path).shares_prompts
        assert not caplog.records
        assert not loaded(tmp_path, gradient_checkpointing=True).shares_prompts
    assert [record.getMessage() for record in caplog.records] == [
        f"each sample computes its prompt again, which costs time: gradient checkpointing keeps no cache in {tmp_path}"
    ]


def test_a_model_with_a_sliding_window_computes_whole_rows(tmp_path: Path) -> None:
    make_policy(tmp_path)  # for its tokenizer
    config = Qwen3Config.from_pretrained(tmp_path)
    config.update({"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 2})
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    policy = loaded(tmp_path)
    assert not policy.shares_prompts
    assert objection(policy.model.get_decoder(), CPU, len(WORDS)) == "its cache holds DynamicSlidingWindowLayer"
    accumulated(policy, samples_of(0, [(5, [4, 2])]), objective(40))


@pytest.mark.parametrize(("kinds", "shares"), [(("global", "local"), False), (("global", "global"), True)])
def test_a_model_whose_mask_alone_knows_a_window_computes_whole_rows(
    tmp_path: Path, kinds: tuple[str, str], shares: bool
) -> None:
    make_policy(tmp_path)  # for its tokenizer
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        max_position_embeddings=64,
        window_size=16,
        attention_types=[[list(kinds), 1]],
    )
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    policy = loaded(tmp_path)
    assert policy.shares_prompts == shares
    found = objection(policy.model.get_decoder(), CPU, len(WORDS))
    assert found == (
        None if shares else "its attention sees a window only, attention_layers = local in its config.json"
    )
    policy.model.double()
    assert_as_whole_rows(policy, samples_of(0, [(40, [4, 2, 6]), (3, [5, 1])]), objective(200))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"sliding_window": 64}, "sliding_window = 64"),
        ({"sliding_window": 64, "use_sliding_window": False}, None),
        ({"sliding_window": 64, "layer_types": ["full_attention"] * 2}, None),
        ({"sliding_window": None, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types = sliding"),
        ({"attention_layers": ["global", "local"], "window_size": 256}, "attention_layers = local"),
        ({"attention_window": [64, 64]}, "attention_window = [64, 64]"),
        ({"window_size": 32}, "window_size = 32"),
        ({}, None),
    ],
)
def test_a_window_is_read_off_a_models_configuration(
    tmp_path: Path, said: dict[str, Any], expected: str | None
) -> None:
    decoder = Changed(loaded(make_policy(tmp_path)).model.get_decoder(), "none")
    decoder.config = SimpleNamespace(**said)
    found = objection(decoder, CPU, len(WORDS))
    assert found is None if expected is None else found is not None and expected in found


class Changed(nn.Module):  # type: ignore[misc]  # torch is not typed
    """The tiny decoder with a flaw in what it does with a cache."""

    def __init__(self, decoder: nn.Module, flaw: str) -> None:
        super().__init__()
        self.decoder, self.flaw = decoder, flaw

    def forward(self, **given: Any) -> Any:
        if given.get("past_key_values") is not None:
            if self.flaw == "refuses":
                raise TypeError("forward() takes no position_ids")
            if self.flaw == "counts positions from 0":
                given["position_ids"] = torch.arange(given["input_ids"].shape[1])[None]
            if self.flaw == "sees padding":
                given.pop("attention_mask", None)
        out = self.decoder(**given)
        if self.flaw == "cuts the graph" and given["use_cache"] and given.get("past_key_values") is None:
            for layer in out.past_key_values.layers[:1]:
                layer.keys = layer.keys.detach() + 0 * layer.keys
        return out


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ("none", None),
        ("refuses", "can't be used so: TypeError: forward() takes no position_ids"),
        ("counts positions from 0", "its states differ by"),
        ("sees padding", "its states differ by"),
        ("cuts the graph", "its gradient differs by"),
    ],
)
def test_a_model_whose_cache_does_something_else_is_found_out(tmp_path: Path, flaw: str, reason: str | None) -> None:
    decoder = Changed(loaded(make_policy(tmp_path)).model.get_decoder(), flaw)
    found = objection(decoder, CPU, len(WORDS))
    assert found is None if reason is None else found is not None and reason in found


def test_the_proof_leaves_neither_gradients_nor_another_random_state(tmp_path: Path) -> None:
    policy = loaded(make_policy(tmp_path))
    before = torch.get_rng_state()
    assert shared_prompt.objection(policy.model.get_decoder(), CPU, len(WORDS)) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.grad is None for weight in policy.model.parameters())
