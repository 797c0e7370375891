"""Our requests and samples in vLLM's words, and back."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from entrostat.protocol.messages import FINISHED_LENGTH, FINISHED_STOP, Samples
from entrostat.protocol.ports import SampleRequest


def sampling_parameters(request: SampleRequest) -> Any:
    """The parameters of one request: `n = G` samples, the drawn tokens' log-probs, nothing to be detokenised."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=request.samples,
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        # vLLM draws sample i with seed + i: neighbouring seeds must not share samples.
        seed=xxhash.xxh3_64_intdigest(struct.pack("<q", request.seed)) >> 2 if request.reproducible else None,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_parameters() -> Any:
    """The parameters to score a prompt's own tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def samples_of(outputs: Sequence[Any]) -> Samples:
    """The finished completions of one request, in order of their index, as flat arrays."""
    ordered = sorted(outputs, key=lambda output: output.index)
    return Samples(
        tokens=np.concatenate([np.asarray(output.token_ids, np.int32) for output in ordered]),
        logprobs=np.concatenate([np.asarray(output.logprobs.logprobs, np.float32) for output in ordered]),
        lengths=np.asarray([len(output.token_ids) for output in ordered], np.int32),
        finish=np.asarray(
            [FINISHED_LENGTH if output.finish_reason == "length" else FINISHED_STOP for output in ordered], np.uint8
        ),
        spans=np.asarray(
            [
                [index, span.start, *map(int, span.version.split("."))]
                for index, output in enumerate(ordered)
                for span in output.weight_versions
            ],
            np.int32,
        ).reshape(-1, 4),
    )
