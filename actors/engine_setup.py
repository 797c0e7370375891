"""How a vLLM engine is started: its process's environment, its arguments."""

import os
from pathlib import Path
from typing import Any

from entrostat.protocol.errors import ModelError
from entrostat.protocol.learner_settings import Lora
from entrostat.protocol.settings import ModelSettings, VllmSettings


def prepare_environment(model: ModelSettings, settings: VllmSettings) -> None:
    """Sets what vLLM and its processes read; to be called before vLLM is imported. What the user has set stays,
    but for what the settings say themselves.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if settings.own_process else "0"
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other stations live on these cores too
    }
    if Path(model.path).is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"
    if settings.own_process:
        # Ray has set it to the actor's CPUs, so a default would not reach the child.
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def build_engine(model: ModelSettings, settings: VllmSettings, seed: int, lora: Lora | None) -> Any:
    """A `vllm.LLMEngine` with our weight-transfer backend, and with room for an adapter where there is one.

    Raises:
        ModelError: vLLM can't build an engine for this model with these settings.
    """
    prepare_environment(model, settings)
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    from entrostat.actors import adapter, weight_plugin

    # The entry point does this too, in every process of vLLM; here it also serves a tree that is not installed.
    weight_plugin.register()
    on_cpu: bool = current_platform.is_cpu()
    if on_cpu:
        weight_plugin.settle_on_cpu(settings.threads)
    context: Any = settings.max_model_tokens or None  # None: the model's own; vLLM's annotation does not say so
    arguments = EngineArgs(
        model=model.path,
        dtype=model.dtype,
        trust_remote_code=model.trust_remote_code,
        max_model_len=context,
        seed=seed,
        max_num_seqs=settings.max_sequences,
        gpu_memory_utilization=settings.memory_share,
        tensor_parallel_size=settings.tensor_parallel,
        enforce_eager=settings.enforce_eager,
        enable_prefix_caching=True,  # the samples of a prompt share its keys and values
        generation_config="vllm",  # a model's own top-p or top-k would change what the log-probs mean
        logprobs_mode="processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend=weight_plugin.BACKEND),
        worker_extension_cls=weight_plugin.RECEIVER,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        # vLLM's chunked prefill can't be seeded on a CPU ("CPU Generator does not use offset").
        enable_chunked_prefill=not on_cpu,
        **({} if lora is None else adapter.engine_arguments(model.path, lora)),
    )
    try:
        engine = LLMEngine.from_engine_args(arguments, enable_multiprocessing=settings.own_process)
    except (ValueError, OSError) as error:
        raise ModelError(
            f"vLLM can't start with the model {model.path}: {error}. If memory is what it lacks, lower "
            "rollout.engine.max_model_tokens, or raise memory_share (kv_cache_gib on a CPU)"
            + (
                ""
                if lora is None
                else '. Where it has no LoRA for this model, use [learner.weights] publish = "merged"'
            )
        ) from error
    engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
    return engine
