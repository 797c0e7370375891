"""A policy as it is loaded: what it scores, and which models are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2ForCausalLM,
    GPT2Config,
    OPTConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from entrostat.learner.policy import score
from entrostat.protocol.errors import ModelError
from tests.tiny_policy import loaded, make_one_layer, make_policy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


def test_scores_are_the_models_own_log_probs_whatever_the_padding(model: Path) -> None:
    policy = loaded(model)
    sequences = [np.array([3, 4, 5], np.int32), np.array([9, 8, 7, 6, 5, 4], np.int32)]
    for sequence, ours in zip(sequences, score(policy, sequences), strict=True):
        ids = torch.tensor(sequence[None], dtype=torch.int64)
        with torch.no_grad():
            table = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        expected = [table[t - 1, sequence[t]].item() for t in range(1, len(sequence))]
        assert ours.tolist() == pytest.approx(expected, abs=1e-6)


SIZES: dict[str, Any] = {"vocab_size": 29, "hidden_size": 16, "num_attention_heads": 2}
DROPPING = {  # by where a family keeps its dropout
    "in modules": GPT2Config(
        vocab_size=29, n_embd=16, n_layer=2, n_head=2, n_positions=64, attn_pdrop=0.5, resid_pdrop=0.5
    ),
    "in numbers of its layers": OPTConfig(
        **SIZES, num_hidden_layers=2, ffn_dim=16, word_embed_proj_dim=16, dropout=0.1, attention_dropout=0.1
    ),
    "in numbers inside its layers": BloomConfig(**SIZES, n_layer=2, hidden_dropout=0.1, attention_dropout=0.1),
    "in its configuration": FalconConfig(**SIZES, num_hidden_layers=2, hidden_dropout=0.1, attention_dropout=0.1),
}


def make_dropping(folder: Path, config: Any) -> Path:
    make_policy(folder)  # for its tokenizer
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
@pytest.mark.parametrize("kept", DROPPING)
def test_dropout_is_off_in_every_mode(tmp_path: Path, kept: str, gradient_checkpointing: bool) -> None:
    folder = make_dropping(tmp_path, DROPPING[kept])
    policy = loaded(folder, gradient_checkpointing=gradient_checkpointing)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(policy.hidden(tokens), policy.hidden(tokens), rtol=0, atol=0)


@pytest.mark.parametrize("kept", DROPPING)
def test_checkpointed_layers_are_computed_again_and_give_the_same_gradient(tmp_path: Path, kept: str) -> None:
    folder = make_dropping(tmp_path, DROPPING[kept])
    gradients, calls = [], []
    for gradient_checkpointing in (False, True):
        policy = loaded(folder, gradient_checkpointing=gradient_checkpointing)
        layer = next(module for module in policy.model.modules() if isinstance(module, GradientCheckpointingLayer))
        calls.append(0)

        def count(*_: object) -> None:
            calls[-1] += 1

        layer.register_forward_pre_hook(count)
        policy.hidden(torch.arange(20)[None]).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in policy.model.named_parameters()})
    assert calls == [1, 2]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_a_model_that_computes_at_random_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient_checkpointing: bool
) -> None:
    computed = Qwen3MLP.forward
    monkeypatch.setattr(Qwen3MLP, "forward", lambda self, states: nn.functional.dropout(computed(self, states), 0.01))
    with pytest.raises(ModelError, match=r"drops or draws at random.*Set every dropout in its config\.json to 0"):
        loaded(make_policy(tmp_path), gradient_checkpointing=gradient_checkpointing)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        loaded(tmp_path / "nowhere")


def test_a_model_with_a_corrupt_weights_file_is_refused(tmp_path: Path) -> None:
    folder = make_policy(tmp_path / "policy")
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ModelError, match="can be loaded"):
        loaded(folder)


def test_a_model_that_lacks_weights_is_refused_and_not_filled_with_noise(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_policy(tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight first"):
        loaded(folder)


def test_a_model_that_caps_its_logits_is_refused(tmp_path: Path) -> None:
    folder = make_one_layer(tmp_path / "policy", Gemma2ForCausalLM, final_logit_softcapping=1.0, initializer_range=0.5)
    with pytest.raises(ModelError, match="caps, scales or shifts"):
        loaded(folder)
