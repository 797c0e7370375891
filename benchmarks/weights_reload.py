"""What vLLM's reload of a version costs, in copies of its bytes: the part of an update that is the engine's own.

`python -m benchmarks.weights_reload REQUEST RESULT`, both JSON. A policy of random weights is published again and again
and loaded by a real engine in this process; beside each load one copy of the bytes, as in `weights_run`.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks.weights_run import timed
from entrostat.actors.engine import VllmEngine
from entrostat.learner.policy import load_policy, score
from entrostat.learner.probe import make_probe
from entrostat.learner.shared_memory import SharedMemoryPublisher
from entrostat.protocol.messages import PolicyVersion
from entrostat.protocol.settings import ModelSettings, VllmSettings

SPREAD = 0.05  # of the weights: enough for wrong ones to compute something else
TOLERANCE_NATS = 0.5
CONTEXT = 128


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    rounds: int


def save(request: Request, folder: Path) -> None:
    """A Qwen2 of random bfloat16 weights, in Hugging Face form."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=request.vocabulary,
        hidden_size=request.hidden,
        intermediate_size=request.intermediate,
        num_hidden_layers=request.layers,
        num_attention_heads=request.hidden // 64,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=SPREAD,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)


def measure(request: Request) -> dict[str, Any]:
    """The rounds, one after another; the first load, with its canary, is left out."""
    torch.set_num_threads(1)
    sequences = [np.random.default_rng(i).integers(3, request.vocabulary, 32).astype(np.int32) for i in range(4)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        save(request, Path(folder))
        settings = ModelSettings(path=folder, dtype="bfloat16")
        policy = load_policy(settings, source=folder, device=torch.device("cpu"))
        tensors, publisher = policy.named_tensors(), SharedMemoryPublisher("benchmark", Path(shared))
        probe = make_probe(sequences, score(policy, sequences), None, TOLERANCE_NATS)
        engine = VllmEngine(settings, VllmSettings())
        rounds, size = [], 0
        for step in range(request.rounds + 1):
            manifest = publisher.publish(PolicyVersion(branch=0, step=step), tensors, probe)
            size = manifest.bytes
            source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
            _, memcpy = timed(partial(np.copyto, target, source))
            del source, target
            _, inspected = timed(partial(engine._inspect, manifest))
            _, loaded = timed(partial(engine.load, manifest))  # inspects once more
            _, scored = timed(partial(engine.score, sequences))
            if step:
                rounds.append({"memcpy": memcpy, "checked": inspected, "loaded": loaded, "scored": scored})
        engine.close()
        publisher.close()
    return {"bytes": size, "rounds": rounds}


def main() -> None:
    request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Request)
    Path(sys.argv[2]).write_text(json.dumps(measure(request)))


if __name__ == "__main__":
    main()
