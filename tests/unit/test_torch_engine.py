"""The benchmarks' own engine: what it draws is what the policy says, and its log-probs are the policy's."""

import numpy as np
import pytest
import torch

from benchmarks.torch_engine import TorchEngine
from entrostat.learner.policy import Policy
from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.messages import FINISHED_LENGTH, FINISHED_STOP, Samples
from entrostat.protocol.ports import SampleRequest
from tests.made_messages import manifest
from tests.tiny_policy import PROMPTS, loaded, make_policy, make_prompts

END = 1
LIMIT = 12
PROMPT = make_prompts().prompts[0]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return loaded(make_policy(tmp_path_factory.mktemp("policy")))


def encoded(policy: Policy, text: str) -> Int32:
    return np.array(policy.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def drawn(policy: Policy, samples: int = 50, temperature: float = 1.0, seed: int = 0) -> dict[str, Samples]:
    engine = TorchEngine(policy.model, END, seed)
    engine.load(manifest(3))
    for text in PROMPTS:
        engine.submit(
            SampleRequest(
                id=text,
                prompt_tokens=encoded(policy, text),
                samples=samples,
                temperature=temperature,
                max_tokens=LIMIT,
                seed=0,
                prompt=PROMPT,
            )
        )
    assert engine.unfinished == len(PROMPTS)
    found: dict[str, Samples] = {}
    while engine.unfinished:
        found |= {one.id: one.samples for one in engine.step()}
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_policy_at_the_temperature(policy: Policy, temperature: float) -> None:
    for text, samples in drawn(policy, temperature=temperature).items():
        prompt, start = encoded(policy, text), 0
        for length in samples.lengths[:10]:
            response = samples.tokens[start : start + length]
            ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
            with torch.no_grad():
                table = (policy.model(ids).logits[0].float() / temperature).log_softmax(-1)
            expected = table[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
            np.testing.assert_allclose(samples.logprobs[start : start + length], expected, atol=1e-5)
            start += length


def test_a_response_ends_with_its_end_token_or_at_the_limit(policy: Policy) -> None:
    finishes = set()
    for samples in drawn(policy).values():
        start = 0
        for length, finish in zip(samples.lengths, samples.finish, strict=True):
            response = samples.tokens[start : start + length].tolist()
            finishes.add(int(finish))
            assert END not in response[:-1]
            assert (finish == FINISHED_STOP) == (response[-1] == END)
            assert length == LIMIT or finish == FINISHED_STOP
            start += length
        assert start == len(samples.tokens) == len(samples.logprobs)
    assert finishes == {FINISHED_STOP, FINISHED_LENGTH}


def test_first_tokens_are_drawn_as_often_as_the_policy_says(policy: Policy) -> None:
    samples = drawn(policy, samples=4000)[PROMPTS[2]]
    firsts = samples.tokens[np.concatenate([[0], np.cumsum(samples.lengths)[:-1]])]
    ids = torch.from_numpy(encoded(policy, PROMPTS[2]).astype(np.int64))[None]
    with torch.no_grad():
        expected = policy.model(ids).logits[0, -1].float().softmax(-1).numpy()
    seen = np.bincount(firsts, minlength=len(expected)) / len(firsts)
    assert np.abs(seen - expected).sum() < 0.1


def test_the_seed_decides_what_is_drawn(policy: Policy) -> None:
    one, same, other = (drawn(policy, seed=seed)[PROMPTS[0]].tokens.tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_an_engine_without_a_version_says_so(policy: Policy) -> None:
    with pytest.raises(WeightsRefused, match="no version"):
        _ = TorchEngine(policy.model, END, 0).version


def test_samples_name_the_version_that_drew_them(policy: Policy) -> None:
    spans = drawn(policy, samples=2)[PROMPTS[0]].spans
    assert spans.tolist() == [[0, 0, 0, 3], [1, 0, 0, 3]]
