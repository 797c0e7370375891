"""vLLM inside TRL on a CPU: a hand-over of weights that vLLM's packed layers take, and the trainer's float32."""

import importlib
from functools import partial
from typing import Any

HEAD, TIED = "lm_head.weight", "model.embed_tokens.weight"


def mend() -> None:
    """Replaces TRL's hand-over of weights in this process, and the precision its vLLM starts with."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    def sync_weights(generation: Any) -> None:
        runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
        weights = dict(generation._iter_named_params())
        weights.setdefault(HEAD, weights[TIED])  # left out, vLLM would keep the old head
        initialize_layerwise_reload(runner.model)
        runner.model.load_weights(list(weights.items()))
        finalize_layerwise_reload(runner.model, runner.vllm_config.model_config)
        generation.llm.reset_prefix_cache()

    generations: Any = importlib.import_module("trl.generation.vllm_generation")
    generations.VLLMGeneration.sync_weights = sync_weights
    generations.LLM = partial(generations.LLM, dtype="float32", enable_chunked_prefill=False)
