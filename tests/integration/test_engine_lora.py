"""The real engine on the CPU under a policy with low-rank adapters: published merged, and as an adapter."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from entrostat.actors.engine import VllmEngine
from entrostat.learner.adapters import adapt, adapter_tensors, merged_as_saved
from entrostat.learner.merged import Weight
from entrostat.learner.policy import score
from entrostat.learner.probe import make_probe
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import ModelError, WeightsRefused
from entrostat.protocol.learner_settings import Lora
from entrostat.protocol.messages import PolicyVersion, WeightsManifest
from entrostat.protocol.settings import ModelSettings, VllmSettings
from tests.engine_policy import LONG_PROMPT, PROBE, TOLERANCE_NATS, Policy, finish, request
from tests.tiny_policy import loaded

# vLLM's own; its imports use what torch calls deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]

ENGINE = VllmSettings(max_sequences=64)
LORA = Lora(rank=4, alpha=6)


class Adapted(Policy):
    """The trainer's side with adapters, as the learner makes and publishes them."""

    def __init__(self, folder: Path, lora: Lora) -> None:
        super().__init__(folder)
        self.lora = lora
        self.policy = adapt(loaded(self.path), lora, source="tiny", seed=0)
        self.model = self.policy.model

    def publish(self, *, tolerance: float = TOLERANCE_NATS, without: str = "") -> WeightsManifest:
        self._step += 1
        now = self.logprobs_of(PROBE)
        probe = make_probe(PROBE, now, self._before, tolerance)
        self._before = now
        made: dict[str, Any] = (
            self.parts() if self.lora.publish == "adapter" else merged_as_saved(self.policy, self.model.state_dict())
        )
        tensors: dict[str, Weight] = {name: weight for name, weight in made.items() if name != without}
        return self.publisher.publish(PolicyVersion(branch=0, step=self._step), tensors, probe)

    def parts(self) -> dict[str, torch.Tensor]:
        return adapter_tensors(self.policy, self.model.state_dict())

    def logprobs_of(self, sequences: list[Int32]) -> list[Float32]:
        return score(self.policy, sequences)

    def learn(self) -> None:
        torch.manual_seed(self._step)
        with torch.no_grad():
            for part in self.parts().values():
                part.add_(0.1 * torch.randn_like(part))


@pytest.fixture(scope="module")
def closing() -> Iterator[ExitStack]:
    """All at the end: an engine that closes takes vLLM's groups of processes from one that starts beside it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module", params=["merged", "adapter", "adapter of some layers"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, closing: ExitStack
) -> tuple[Adapted, VllmEngine]:
    lora = msgspec.structs.replace(LORA, publish=str(request.param).partition(" ")[0])
    if "some" in request.param:
        lora = msgspec.structs.replace(lora, targets=("q_proj", "v_proj", "down_proj"))
    policy = Adapted(tmp_path_factory.mktemp("engine"), lora)
    closing.callback(policy.publisher.close)
    engine = VllmEngine(
        ModelSettings(path=str(policy.path)), ENGINE, adapter=lora if lora.publish == "adapter" else None
    )
    closing.callback(engine.close)
    engine.load(policy.publish())
    return policy, engine


def test_what_is_sampled_and_probed_is_the_policy_with_its_adapter(pair: tuple[Adapted, VllmEngine]) -> None:
    policy, engine = pair
    for _ in range(2):
        policy.learn()
        engine.load(policy.publish())
        assert engine.mismatch <= TOLERANCE_NATS
        engine.submit(request("a", samples=8, temperature=0.7))
        policy.check(finish(engine)["a"], 0.7)
    plain = score(replace(policy.policy, plain=True), PROBE)
    assert max(np.abs(a - b).max() for a, b in zip(engine.score(PROBE), plain, strict=True)) > 0.1


def test_an_update_mid_request_gives_exact_spans_and_no_old_keys(pair: tuple[Adapted, VllmEngine]) -> None:
    policy, engine = pair
    before = engine.version
    engine.submit(request("a", seed=3, tokens=LONG_PROMPT))
    for _ in range(10):
        assert not engine.step()
    kept = parts_of(policy)
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
    engine.submit(request("b", tokens=LONG_PROMPT))
    policy.check(finish(engine)["b"], 1.0, prompt=LONG_PROMPT)
    now = parts_of(policy)
    put(policy, kept)
    policy.check(samples, 1.0, first=10, prompt=LONG_PROMPT)
    put(policy, now)


def test_the_version_before_is_refused_and_the_served_one_serves_on(pair: tuple[Adapted, VllmEngine]) -> None:
    policy, engine = pair
    now = policy.publish()
    engine.load(now)
    served = engine.version
    engine.submit(request("a"))
    engine.step()
    kept = parts_of(policy)
    policy.learn()
    following = policy.publish()
    learnt = parts_of(policy)
    with pytest.raises(WeightsRefused, match="is not what the engine computes"):
        engine.load(msgspec.structs.replace(following, tensors=now.tensors, location=now.location))
    assert engine.version == served
    samples = finish(engine)["a"]
    assert {(branch, step) for _, _, branch, step in samples.spans.tolist()} == {(served.branch, served.step)}
    put(policy, kept)
    policy.check(samples, 1.0)
    put(policy, learnt)
    engine.load(following)


def test_an_adapter_with_a_part_left_out_is_refused(pair: tuple[Adapted, VllmEngine]) -> None:
    policy, engine = pair
    if policy.lora.publish == "merged":
        return  # whole weights are loaded like any others: test_engine.py
    served = engine.version
    policy.learn()
    with pytest.raises(WeightsRefused):
        engine.load(policy.publish(without=next(iter(policy.parts()))))
    assert engine.version == served
    engine.load(policy.publish())


def parts_of(policy: Adapted) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in policy.parts().items()}


def put(policy: Adapted, parts: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, part in policy.parts().items():
            part.copy_(parts[name])


def test_layers_that_vllm_has_no_place_for_are_named(tmp_path: Path, closing: ExitStack) -> None:
    lora = msgspec.structs.replace(LORA, publish="adapter")
    policy = Adapted(tmp_path, lora)
    closing.callback(policy.publisher.close)
    narrow = msgspec.structs.replace(lora, targets=("q_proj", "v_proj"))
    engine = VllmEngine(ModelSettings(path=str(policy.path)), ENGINE, adapter=narrow)
    closing.callback(engine.close)
    with pytest.raises(WeightsRefused, match=r"beside 8 layers .*layers\.0\.mlp\.down_proj first: leave them out"):
        engine.load(policy.publish())
    with pytest.raises(WeightsRefused, match="nothing yet"):
        engine.submit(request("a"))


def test_a_model_without_safetensors_has_no_layers_to_name(tmp_path: Path) -> None:
    lora = msgspec.structs.replace(LORA, publish="adapter")
    with pytest.raises(ModelError, match="holds no safetensors whose layers could be named"):
        VllmEngine(ModelSettings(path=str(tmp_path)), ENGINE, adapter=lora)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # vLLM leaves a ZeroMQ context open
def test_a_core_in_a_process_of_its_own_exchanges_adapters_too(tmp_path: Path) -> None:
    policy = Adapted(tmp_path, msgspec.structs.replace(LORA, publish="adapter"))
    settings = msgspec.structs.replace(ENGINE, own_process=True)
    engine = VllmEngine(ModelSettings(path=str(policy.path)), settings, adapter=policy.lora)
    try:
        engine.load(policy.publish())
        engine.submit(request("a", samples=32))
        engine.step()
        policy.learn()
        engine.load(policy.publish())
        assert {step for _, _, _, step in finish(engine)["a"].spans.tolist()} <= {0, 1}
        engine.submit(request("b"))
        policy.check(finish(engine)["b"], 1.0)
    finally:
        engine.close()
        policy.publisher.close()
