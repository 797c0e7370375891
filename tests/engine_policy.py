"""The trainer's side of the engine's tests: a policy of random weights, published, and what it computes itself."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from entrostat.actors.engine import VllmEngine
from entrostat.learner.probe import make_probe
from entrostat.learner.shared_memory import SharedMemoryPublisher
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.messages import PolicyVersion, Prompt, Samples, WeightsManifest
from entrostat.protocol.ports import SampleRequest
from tests.tiny_policy import make_policy

VOCABULARY = 64
CONTEXT = 512
TOLERANCE_NATS = 1e-4
PROBE = [np.random.default_rng(seed).integers(2, VOCABULARY, 6 + 5 * seed).astype(np.int32) for seed in range(3)]
PROMPT = np.arange(5, 25, dtype=np.int32)
LONG_PROMPT = np.random.default_rng(9).integers(2, VOCABULARY, 400).astype(np.int32)  # several blocks of the cache


class Policy:
    """The trainer's side: weights, what they compute, and their publishing."""

    def __init__(self, folder: Path) -> None:
        words = [str(token) for token in range(VOCABULARY)]
        self.path = make_policy(folder / "policy", words=words, width=64, context=CONTEXT, spread=0.2)
        self.model: Any = Qwen3ForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        self.publisher = SharedMemoryPublisher("engine-test", root=folder)
        self._step = -1
        self._before: list[Float32] | None = None

    def publish(self, *, tolerance: float = TOLERANCE_NATS, without: str = "") -> WeightsManifest:
        """The weights of now as the next version, `without` one tensor if asked."""
        self._step += 1
        now = [self.logprobs(sequence) for sequence in PROBE]
        probe = make_probe(PROBE, now, self._before, tolerance)
        self._before = now
        tensors = {name: tensor for name, tensor in self.model.state_dict().items() if name != without}
        return self.publisher.publish(PolicyVersion(branch=0, step=self._step), tensors, probe)

    def learn(self) -> None:
        """Moves every weight a little, as an optimizer step does."""
        torch.manual_seed(self._step)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))

    def logprobs(self, sequence: Int32, temperature: float = 1.0) -> Float32:
        """`[n]` tokens → `[n − 1]` log-probs of those after the first."""
        tokens = torch.from_numpy(sequence).long()
        with torch.no_grad():
            scores = torch.log_softmax(self.model(tokens[None]).logits[0, :-1] / temperature, -1)
        found: Float32 = scores.gather(1, tokens[1:, None])[:, 0].numpy()
        return found

    def check(self, samples: Samples, temperature: float, *, first: int | None = None, prompt: Int32 = PROMPT) -> None:
        """Every sample's log-probs (or those of its `first` tokens) are this policy's."""
        ends = np.cumsum(samples.lengths)
        for tokens, drawn in zip(
            np.split(samples.tokens, ends[:-1]), np.split(samples.logprobs, ends[:-1]), strict=True
        ):
            expected = self.logprobs(np.concatenate([prompt, tokens]), temperature)[len(prompt) - 1 :]
            np.testing.assert_allclose(drawn[:first], expected[:first], atol=TOLERANCE_NATS, rtol=0)


def request(
    id: str, *, samples: int = 4, temperature: float = 1.0, seed: int = 1, tokens: Int32 = PROMPT
) -> SampleRequest:
    prompt = Prompt(id=0, name="p", level="l", task=0, text="", answer="", entry="")
    return SampleRequest(
        id=id,
        prompt_tokens=tokens,
        samples=samples,
        temperature=temperature,
        max_tokens=30,
        seed=seed,
        prompt=prompt,
    )


def finish(engine: VllmEngine) -> dict[str, Samples]:
    found: dict[str, Samples] = {}
    for _ in range(1000):
        if not engine.unfinished:
            return found
        found |= {completion.id: completion.samples for completion in engine.step()}
    raise AssertionError("the engine did not finish")
