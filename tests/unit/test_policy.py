"""A policy as it is loaded: what it scores, and which models are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

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


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_dropout_is_off_in_every_mode(tmp_path: Path, gradient_checkpointing: bool) -> None:
    folder = make_policy(tmp_path / "policy")  # for its tokenizer
    config = GPT2Config(vocab_size=29, n_embd=16, n_layer=2, n_head=2, n_positions=64, attn_pdrop=0.5, resid_pdrop=0.5)
    GPT2LMHeadModel(config).save_pretrained(folder)
    policy = loaded(folder, gradient_checkpointing=gradient_checkpointing)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(policy.hidden(tokens), policy.hidden(tokens), rtol=0, atol=0)


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
