"""Packed samples: the numbers and gradients of padded rows, no padding, and models that can't are found out."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from entrostat.learner import packing
from entrostat.learner.batching import packed_blocks
from entrostat.learner.forward import plan
from entrostat.learner.packing import objection, read_packed, sequences_of
from entrostat.learner.policy import Policy, freeze, score
from entrostat.protocol.errors import ModelError
from entrostat.protocol.learner_settings import Gspo
from tests.made_samples import accumulated, assert_as_whole_rows, by_sample, objective, samples_of
from tests.tiny_orders import PARTS, taken_by
from tests.tiny_orders import objective as order_objective
from tests.tiny_policy import WORDS, in_float64, loaded, make_policy, moved

CPU = torch.device("cpu")
ON: dict[str, Any] = {"packing": "on"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def exact(folder: Path) -> Policy:
    policy = in_float64(loaded(folder, packed="on"))
    assert policy.packs
    return policy


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 8), min_size=1, max_size=4)), min_size=1, max_size=5),
    st.integers(1, 120),
    st.integers(0, 2**16),
)
@settings(max_examples=25)
def test_loss_gradient_and_measurements_are_those_of_whole_rows(
    exact: Policy, groups: list[tuple[int, list[int]]], budget: int, seed: int
) -> None:
    assert_as_whole_rows(exact, samples_of(seed, groups), objective(budget, **ON))


def test_a_policy_that_was_never_made_ready_for_packing_has_the_same_gradient(folder: Path, exact: Policy) -> None:
    samples, wanted = samples_of(0, [(5, [4, 2, 7]), (3, [1, 6])]), objective(40, **ON)
    ours, mine = accumulated(exact, samples, wanted)
    whole, theirs = accumulated(in_float64(loaded(folder)), samples, wanted)
    assert (ours.padding_share, whole.padding_share > 0) == (0.0, True)
    torch.testing.assert_close(by_sample(ours), by_sample(whole), atol=1e-10, rtol=0)
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_the_pull_to_a_reference_is_that_of_whole_rows(folder: Path, exact: Policy) -> None:
    reference = freeze(moved(in_float64(loaded(folder, packed="on")), 0.05))
    samples, wanted = samples_of(1, [(5, [4, 2, 6]), (3, [5, 1])]), objective(60, kl=0.5, **ON)
    assert_as_whole_rows(exact, samples, wanted, reference)
    assert accumulated(exact, samples, wanted, reference)[0].terms.kl < 0


def test_a_reference_that_can_not_pack_is_asked_for_padded_rows(folder: Path, exact: Policy) -> None:
    reference = freeze(in_float64(loaded(folder)))
    measured, _ = accumulated(exact, samples_of(1, [(5, [4, 2, 6])]), objective(60, kl=0.5, **ON), reference)
    assert measured.terms.kl == pytest.approx(0.0, abs=1e-12)
    assert measured.padding_share > 0


def test_gradient_checkpointing_changes_nothing(folder: Path, exact: Policy) -> None:
    saving = in_float64(loaded(folder, gradient_checkpointing=True, packed="on"))
    samples, wanted = samples_of(2, [(5, [4, 2, 7]), (3, [1, 6])]), objective(40, **ON)
    (ours, mine), (_, theirs) = accumulated(saving, samples, wanted), accumulated(exact, samples, wanted)
    assert (saving.packs, saving.shares_prompts, ours.padding_share) == (True, False, 0.0)
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("changes", [{**PARTS, "policy_tokens": 0.5}, {"loss": Gspo()}], ids=["survey", "sequences"])
def test_steps_with_a_survey_or_ratios_of_sequences_are_those_of_whole_rows(
    folder: Path, changes: dict[str, object]
) -> None:
    packed, padded = (in_float64(loaded(folder, packed=how)) for how in ("on", "off"))
    ours = taken_by(packed, order_objective(**changes, **ON))
    theirs = taken_by(padded, order_objective(**changes))
    for mine, whole in zip(ours.steps, theirs.steps, strict=True):
        assert mine.measured.padding_share == 0.0
        assert mine.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-9)
        assert mine.measured.terms.objective == pytest.approx(whole.measured.terms.objective, rel=1e-9)


def test_each_token_but_a_samples_last_is_computed_once_and_nothing_else(folder: Path) -> None:
    policy = loaded(folder, packed="on")
    read: list[tuple[int, ...]] = []
    policy.model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(tuple(given[0].shape)))
    measured, _ = accumulated(policy, samples_of(0, [(5, [4, 2, 7]), (3, [1, 6])]), objective(30, **ON))
    # Of 12, 9, 9, 7 and 4 tokens: 12 + 9 + 9 are full, 7 and 4 are left.
    assert read == [(1, 11 + 8 + 8), (1, 6 + 3)]
    assert measured.padding_share == 0.0


def test_no_mask_of_all_pairs_of_tokens_is_made(folder: Path) -> None:
    policy, seen = loaded(folder, packed="on"), list[int]()
    layer = policy.decoder.layers[0]
    layer.register_forward_pre_hook(lambda _, __, given: seen.append(given["attention_mask"].numel()), with_kwargs=True)
    accumulated(policy, samples_of(0, [(5, [4, 2, 7])]), objective(60, **ON))
    assert seen == [0]


def test_auto_packs_where_that_makes_fewer_tokens(folder: Path) -> None:
    policy, auto = loaded(folder, packed="on"), objective(1000)
    repeated = samples_of(0, [(20, [4] * 8)])  # 20 + 8·4 with the prompt once, 8·24 packed
    uneven = samples_of(0, [(2, [40, 38, 1, 1])])  # in rounds of 2·40 and 2·1 the prompt once; 88 packed
    assert [block.packed for block in plan(policy, None, repeated, auto)[0]] == [False]
    assert [block.packed for block in plan(policy, None, repeated, objective(1000, **ON))[0]] == [True]
    alone = dataclasses.replace(policy, shares_prompts=False)
    assert [block.packed for block in plan(alone, None, uneven, auto)[0]] == [True]
    assert not plan(dataclasses.replace(alone, packs=False), None, uneven, auto)[0][0].packed


def test_long_and_short_samples_fill_rows_of_the_budget() -> None:
    samples = samples_of(0, [(2, [10, 5, 0, 4, 1]), (3, [30])])
    (block,) = packed_blocks(samples, 20)
    assert [[len(one.tokens) for one in row] for row in block.batches] == [[33], [12, 7], [6, 3]]
    assert (block.computed, block.wasted) == (33 + 12 + 7 + 6 + 3, 0)


def test_padded_prompts_and_the_probe_are_as_before(folder: Path) -> None:
    packed, plain = (in_float64(loaded(folder, packed=how)) for how in ("on", "off"))
    assert packed.shares_prompts
    probes = [np.array([3, 4, 5, 6], np.int32), np.array([7, 8], np.int32)]
    for ours, others in zip(score(packed, probes), score(plain, probes), strict=True):
        np.testing.assert_allclose(ours, others, rtol=0, atol=1e-7)  # given as float32
    samples, wanted = samples_of(0, [(2, [8, 1, 3]), (9, [1]), (4, [6, 6])]), objective(60)
    padded = dataclasses.replace(packed, packs=False)
    (_, mine), (_, theirs) = accumulated(padded, samples, wanted), accumulated(plain, samples, wanted)
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_auto_pads_where_there_is_no_kernel_and_says_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "entrostat.learner.policy"):
        assert not loaded(folder, packed="auto").packs
    assert not caplog.records
    assert not packing.has_kernel(CPU, torch.bfloat16)


def test_a_saved_policy_says_nothing_of_packing(folder: Path, tmp_path: Path) -> None:
    loaded(folder, packed="on").model.save_pretrained(tmp_path)
    assert packing.NAME not in (tmp_path / "config.json").read_text()


def kernel_like_torchs(asked: list[Any]) -> Any:
    """Variable-length attention on a CPU with the arguments of torch's, which it notes."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *edges: Any, **how: Any) -> Tensor:
        asked.append((query.shape, key.shape, *edges, how))
        sizes = edges[0].diff().tolist()
        pieces = zip(*(tensor.transpose(0, 1)[None].split(sizes, 2) for tensor in (query, key, value)), strict=True)
        mixed = [
            scaled_dot_product_attention(q, k, v, is_causal=True, scale=how["scale"], enable_gqa=True)
            for q, k, v in pieces
        ]
        return torch.cat(mixed, 2)[0].transpose(0, 1)

    return attend


def test_a_kernel_is_told_where_samples_begin_and_that_none_sees_ahead(
    folder: Path, exact: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    samples, wanted = samples_of(0, [(5, [4, 2]), (3, [1])]), objective(60, **ON)
    _, expected = accumulated(exact, samples, wanted)
    monkeypatch.setattr(packing, "has_kernel", lambda *_: True)
    monkeypatch.setattr(packing, "varlen_attn", kernel_like_torchs(asked))
    _, found = accumulated(exact, samples, wanted)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    queries, keys, starts, of_keys, longest, of_longest, how = asked[0]
    assert (queries, keys) == ((17, 2, 16), (17, 1, 16))
    assert starts.tolist() == of_keys.tolist() == [0, 8, 14, 17]
    assert starts.dtype == torch.int32
    assert (longest, of_longest) == (8, 8)
    assert how == {"scale": 0.25, "window_size": (-1, 0), "enable_gqa": True}


def test_positions_restart_with_each_sequence() -> None:
    sequences = sequences_of([3, 1, 2], CPU)
    assert sequences.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert (sequences.edges.tolist(), sequences.longest) == ([0, 3, 4, 6], 3)


NARROW = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2}
QWEN3 = NARROW | {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
STATES = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
WINDOW = {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 2}
MAMBA = NARROW | {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1}


@pytest.mark.parametrize(
    ("architecture", "config", "reason"),
    [
        (Qwen3ForCausalLM, Qwen3Config(**QWEN3), None),
        (GPT2LMHeadModel, GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2), None),
        (Qwen3ForCausalLM, Qwen3Config(**(QWEN3 | WINDOW)), "its layers keep DynamicSlidingWindowLayer"),
        (
            Qwen3NextForCausalLM,
            Qwen3NextConfig(**(QWEN3 | STATES | EXPERTS), layer_types=["linear_attention", "full_attention"]),
            "its layers keep LinearAttentionLayer",
        ),
        (Mamba2ForCausalLM, Mamba2Config(**MAMBA), "its attention is 'eager', expected 'sdpa'"),
        (BloomForCausalLM, BloomConfig(**NARROW, n_head=2), "its attention is 'eager', expected 'sdpa'"),
        (FalconForCausalLM, FalconConfig(**NARROW, num_attention_heads=2), "its attention can't be replaced"),
    ],
    ids=["Qwen3", "GPT-2", "a window", "a state beside attention", "states alone", "biases", "its own attention"],
)
def test_only_models_that_keep_sequences_apart_are_packed(architecture: Any, config: Any, reason: str | None) -> None:
    torch.manual_seed(0)
    model = architecture(config).eval()
    before = model.config._attn_implementation
    found = objection(model, CPU, len(WORDS))
    assert found is None if reason is None else found is not None and found.startswith(reason)
    assert model.config._attn_implementation == (packing.NAME if reason is None else before)


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ("forgets where samples begin", "its states differ by"),
        ("cuts the graph", "its gradient differs by"),
        ("refuses", "it can't be told of sequences: RuntimeError: no kernel for these heads"),
    ],
)
def test_attention_that_does_something_else_is_found_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flaw: str, reason: str
) -> None:
    model = loaded(folder).model
    honest = AttentionInterface._global_mapping[packing.NAME]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> Any:
        sequences = given.get("cu_seq_lens_q")
        if sequences is not None and flaw == "refuses":
            raise RuntimeError("no kernel for these heads")
        if sequences is not None and flaw == "cuts the graph":
            key = key.detach()
        if sequences is not None and flaw == "forgets where samples begin":
            given["cu_seq_lens_q"] = sequences[[0, -1]]
        return honest(module, query, key, value, mask, **given)

    monkeypatch.setitem(AttentionInterface._global_mapping, packing.NAME, attend)
    assert reason in str(objection(model, CPU, len(WORDS)))
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_can_not_be_packed_is_padded_with_a_word_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_policy(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | WINDOW
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r'learner\.packing is "on": its layers keep DynamicSlidingWindowLayer'):
        loaded(tmp_path, packed="on")
    monkeypatch.setattr(packing, "has_kernel", lambda *_: True)
    with caplog.at_level(logging.INFO, "entrostat.learner.policy"):
        assert not loaded(tmp_path, packed="auto").packs
    assert caplog.records[-1].getMessage() == (
        "samples are padded instead of packed, which costs time: its layers keep DynamicSlidingWindowLayer in "
        f"{tmp_path}"
    )


def test_the_proof_leaves_neither_gradients_nor_another_random_state(folder: Path) -> None:
    policy, before = loaded(folder), torch.get_rng_state()
    assert objection(policy.model, CPU, len(WORDS)) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.grad is None for weight in policy.model.parameters())


def test_a_token_is_blind_to_other_samples_of_its_row(exact: Policy) -> None:
    sequences = sequences_of([3, 4], CPU)
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        states = read_packed(exact.decoder, tokens, sequences)
        others = read_packed(exact.decoder, tokens + torch.tensor([[0, 0, 0, 1, 1, 1, 1]]), sequences)
    assert torch.equal(states[:, :3], others[:, :3])
    assert not torch.isclose(states[:, 3:], others[:, 3:]).any()
