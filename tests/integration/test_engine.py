"""The real engine on the CPU, with a policy of random weights: what it draws, and which weights it lets in."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from transformers import Qwen3ForCausalLM

from entrostat.actors.engine import VllmEngine
from entrostat.protocol.errors import StationLost, TaskError, WeightsRefused
from entrostat.protocol.messages import FINISHED_LENGTH, PolicyVersion, SharedFile
from entrostat.protocol.settings import ModelSettings, VllmSettings
from tests.engine_policy import CONTEXT, LONG_PROMPT, PROBE, TOLERANCE_NATS, Policy, finish, request

# vLLM's own; its imports use what torch calls deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]

ENGINE = VllmSettings(max_sequences=64)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policy]:
    made = Policy(tmp_path_factory.mktemp("engine"))
    yield made
    made.publisher.close()


@pytest.fixture(scope="module")
def engine(policy: Policy) -> Iterator[VllmEngine]:
    """One engine for most tests; each leaves it idle, serving the policy's weights of then."""
    made = VllmEngine(ModelSettings(path=str(policy.path)), ENGINE)
    made.load(policy.publish())
    yield made
    made.close()


def test_sampled_log_probs_are_the_policy_s_at_the_rollout_temperature(policy: Policy, engine: VllmEngine) -> None:
    for temperature in (1.0, 0.7):
        engine.submit(request("a", samples=8, temperature=temperature))
        samples = finish(engine)["a"]
        assert samples.lengths.shape == (8,)
        assert samples.spans[:, 1].tolist() == [0] * 8
        policy.check(samples, temperature)


def test_a_sample_that_ends_holds_its_end_token_and_one_that_is_cut_says_so(engine: VllmEngine) -> None:
    engine.submit(request("a", samples=64, temperature=2.0))
    samples = finish(engine)["a"]
    last = samples.tokens[np.cumsum(samples.lengths) - 1]
    cut = samples.finish == FINISHED_LENGTH
    assert 0 < cut.sum() < 64
    assert (samples.lengths[cut] == 30).all()
    assert (last[~cut] == 1).all()


def test_the_same_seed_draws_the_same_tokens_and_a_neighbouring_one_shares_none(engine: VllmEngine) -> None:
    drawn = []
    for seed in (1, 1, 2):
        engine.submit(request("a", samples=8, temperature=2.0, seed=seed))
        samples = finish(engine)["a"]
        drawn.append([tuple(piece) for piece in np.split(samples.tokens, np.cumsum(samples.lengths)[:-1])])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 8
    assert not set(drawn[0]) & set(drawn[2])


def test_scores_are_without_temperature(policy: Policy, engine: VllmEngine) -> None:
    for sequence, scored in zip(PROBE, engine.score(PROBE), strict=True):
        np.testing.assert_allclose(scored, policy.logprobs(sequence), atol=TOLERANCE_NATS, rtol=0)


def test_more_prompt_tokens_than_fit_in_one_step_are_drawn_by_seed_all_the_same(
    policy: Policy, engine: VllmEngine
) -> None:
    prompts = [np.roll(LONG_PROMPT, shift) for shift in range(8)]
    for index, tokens in enumerate(prompts):
        engine.submit(request(str(index), samples=2, tokens=tokens))
    samples = finish(engine)
    for index, tokens in enumerate(prompts):
        policy.check(samples[str(index)], 1.0, prompt=tokens)


def test_an_update_mid_request_gives_exact_spans_and_the_new_policy_afterwards(
    policy: Policy, engine: VllmEngine
) -> None:
    before = engine.version
    engine.submit(request("a", seed=3))
    for _ in range(10):
        assert not engine.step()
    # The first ten tokens are those of the policy before: they must be held against it before it learns.
    old = Policy.__new__(Policy)
    old.model = Qwen3ForCausalLM(policy.model.config).eval()
    old.model.load_state_dict(policy.model.state_dict())
    policy.learn()
    engine.load(policy.publish())
    samples = finish(engine)["a"]
    longer = [index for index, length in enumerate(samples.lengths) if length > 10]
    assert longer
    for index in longer:
        assert samples.spans[samples.spans[:, 0] == index].tolist() == [
            [index, 0, before.branch, before.step],
            [index, 10, engine.version.branch, engine.version.step],
        ]
    old.check(samples, 1.0, first=10)
    assert engine.mismatch <= TOLERANCE_NATS
    engine.submit(request("b"))
    policy.check(finish(engine)["b"], 1.0)


def test_keys_of_the_version_before_are_not_reused_for_a_new_request(policy: Policy, engine: VllmEngine) -> None:
    engine.submit(request("a", tokens=LONG_PROMPT))
    policy.check(finish(engine)["a"], 1.0, prompt=LONG_PROMPT)
    engine.submit(request("running"))  # it holds blocks of the cache, so the cache can't be cleared
    engine.step()
    policy.learn()
    engine.load(policy.publish())
    engine.submit(request("b", tokens=LONG_PROMPT))
    policy.check(finish(engine)["b"], 1.0, prompt=LONG_PROMPT)


def test_a_tied_head_left_out_is_refused_and_no_token_of_it_leaves(policy: Policy, engine: VllmEngine) -> None:
    served = engine.version
    kept = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    engine.submit(request("a"))
    for _ in range(5):
        engine.step()
    policy.learn()
    headless = policy.publish(without="lm_head.weight")
    policy.learn()
    policy.publish()  # two later versions: the served one stays because the engine holds it
    with pytest.raises(WeightsRefused, match=r"nothing was loaded into: lm_head\.weight") as refused:
        engine.load(headless)
    assert "nats, the tolerance 0.0001" in str(refused.value)
    policy.model.load_state_dict(kept)
    assert engine.version == served
    samples = finish(engine)["a"]
    assert {(branch, step) for _, _, branch, step in samples.spans.tolist()} == {(served.branch, served.step)}
    policy.check(samples, 1.0)


def test_a_damaged_buffer_is_refused_before_it_touches_the_model(policy: Policy, engine: VllmEngine) -> None:
    served = engine.version
    engine.submit(request("a"))
    engine.step()
    kept = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    policy.learn()
    damaged = policy.publish()
    assert isinstance(damaged.location, SharedFile)
    content = np.memmap(damaged.location.path, np.uint8, "r+")
    content[damaged.tensors[3].offset + 5] ^= 1
    with pytest.raises(WeightsRefused, match=damaged.tensors[3].name):
        engine.load(damaged)
    assert engine.version == served
    policy.model.load_state_dict(kept)
    policy.check(finish(engine)["a"], 1.0)
    policy.learn()
    engine.load(policy.publish())
    assert engine.version != served


def test_weights_that_stayed_the_version_before_are_refused(policy: Policy, engine: VllmEngine) -> None:
    """A manifest of the next version over a buffer of this one: checksums agree, and only the probe can tell."""
    now = policy.publish()
    engine.load(now)
    served = engine.version
    policy.learn()
    following = policy.publish()
    with pytest.raises(WeightsRefused, match="is not what the engine computes"):
        engine.load(msgspec.structs.replace(following, tensors=now.tensors, location=now.location))
    assert engine.version == served
    engine.load(following)


def test_aborted_requests_are_forgotten(engine: VllmEngine) -> None:
    engine.submit(request("a"))
    engine.submit(request("b"))
    engine.step()
    engine.abort(["a", "unknown"])
    assert set(finish(engine)) == {"b"}


def test_a_prompt_without_room_for_a_response_is_named(engine: VllmEngine) -> None:
    with pytest.raises(TaskError, match="512"):
        engine.submit(request("a", tokens=np.full(CONTEXT, 3, np.int32)))
    assert engine.unfinished == 0


class Deaf(VllmEngine):
    """An engine whose updates have no effect."""

    def _rpc(self, method: str, **arguments: Any) -> list[Any]:
        return [] if method == "update_weights" else super()._rpc(method, **arguments)


def test_the_canary_is_refused_or_nothing_is_served(policy: Policy) -> None:
    fresh = Policy(policy.path.parent)
    manifest = fresh.publish()
    deaf = Deaf(ModelSettings(path=str(fresh.path)), ENGINE)
    # It computes the first version without loading anything: only the canary shows that it loads nothing.
    with pytest.raises(WeightsRefused, match="passed with perturbed weights"):
        deaf.load(manifest)
    with pytest.raises(WeightsRefused, match="nothing yet"):
        deaf.submit(request("a"))
    deaf.close()
    fresh.publisher.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # vLLM leaves a ZeroMQ context open
def test_a_core_in_a_process_of_its_own_keeps_the_same_promises(tmp_path: Path) -> None:
    policy = Policy(tmp_path)
    engine = VllmEngine(ModelSettings(path=str(policy.path)), VllmSettings(max_sequences=64, own_process=True))
    try:
        engine.load(policy.publish())
        engine.submit(request("a", temperature=0.7))
        policy.check(finish(engine)["a"], 0.7)
        engine.submit(request("b", samples=32))
        engine.step()
        policy.learn()
        engine.load(policy.publish())
        samples = finish(engine)["b"]
        assert {step for _, _, _, step in samples.spans.tolist()} <= {0, 1}
        engine.submit(request("c"))
        policy.check(finish(engine)["c"], 1.0)
        policy.learn()
        with pytest.raises(WeightsRefused, match=r"lm_head\.weight"):
            engine.load(policy.publish(without="lm_head.weight"))
        assert engine.version == PolicyVersion(branch=0, step=1)
    finally:
        engine.close()
        policy.publisher.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("meanwhile", ["it draws", "it loads"])
def test_a_core_that_is_killed_in_its_own_process_ends_in_an_error_with_its_name(
    tmp_path: Path, meanwhile: str
) -> None:
    before = psutil.Process().children(recursive=True)
    policy = Policy(tmp_path)
    engine = VllmEngine(ModelSettings(path=str(policy.path)), VllmSettings(max_sequences=64, own_process=True))
    try:
        engine.load(policy.publish())
        engine.submit(request("a", samples=32))
        engine.step()
        policy.learn()
        manifest = policy.publish()
        for process in psutil.Process().children(recursive=True):
            if process not in before and "EngineCore" in process.name():
                process.kill()
        work: Callable[[], object] = (
            partial(engine.load, manifest) if meanwhile == "it loads" else partial(finish, engine)
        )
        began = time.monotonic()
        with pytest.raises(StationLost, match="engine core, a process of its own"):
            work()
        assert time.monotonic() - began < 20.0
    finally:
        engine.close()
        policy.publisher.close()
