"""The ways in which TRL's trainer can be set on two cores; which is the fastest is measured, not assumed.

vLLM inside TRL does not run on a CPU as it is: TRL hands weights over with `model.load_weights`, and vLLM's CPU layers
have packed theirs away by then, so that the first hand-over ends with an `AttributeError`. Its server mode hands them
over by NCCL, which needs GPUs. With `mended` the hand-over unpacks the layers and packs them again, and vLLM computes
in float32 as TRL's trainer does: not TRL as one installs it, but what it would cost.
"""

from typing import Any

import msgspec

# glibc gives big blocks back to the kernel and faults them in anew, page by page, in every pass.
KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "10000000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
# As our own engine is started on a CPU.
VLLM_ENVIRONMENT = {
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
VLLM_OPTIONS = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_max_model_length": 256,
    "vllm_gpu_memory_utilization": 0.1,
    "vllm_importance_sampling_correction": False,  # it costs one forward pass more
}


class Way(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How TRL computes a step; what the step is stays the same."""

    processes: int = 2  # data-parallel, over gloo
    threads: int = 1  # of each process
    microbatch: int = 128  # samples in one forward pass of one process
    options: dict[str, Any] = {}  # of `GRPOConfig`
    environment: dict[str, str] = {}
    mended: bool = False


EAGER: dict[str, Any] = {"model_init_kwargs": {"attn_implementation": "eager"}}
CONTINUOUS: dict[str, Any] = {
    "use_transformers_continuous_batching": True,
    # Of the machine's memory, each process; the default takes nine tenths of it twice, and the kernel ends one.
    "transformers_continuous_batching_config": {"max_memory_percent": 0.1},
}
FASTEST = "2 processes, 128, memory kept, eager attention"
WAYS = {
    "1 process, 1 thread, 512": Way(processes=1, microbatch=512),
    "1 process, 1 thread, 128": Way(processes=1),
    "1 process, 2 threads, 512": Way(processes=1, threads=2, microbatch=512),
    "1 process, 2 threads, 128": Way(processes=1, threads=2),
    "1 process, 2 threads, 128, memory kept, eager attention": Way(
        processes=1, threads=2, environment=KEEPS_MEMORY, options=EAGER
    ),
    "2 processes, 256": Way(microbatch=256),
    "2 processes, 128": Way(),
    "2 processes, 64": Way(microbatch=64),
    "2 processes, 128, memory kept": Way(environment=KEEPS_MEMORY),
    FASTEST: Way(environment=KEEPS_MEMORY, options=EAGER),
    "… and a static cache": Way(environment=KEEPS_MEMORY, options=EAGER | {"cache_implementation": "static"}),
    "… and bfloat16": Way(environment=KEEPS_MEMORY, options=EAGER | {"bf16": True}),
    "2 processes, 128, memory kept, continuous batching": Way(environment=KEEPS_MEMORY, options=CONTINUOUS),
    "2 processes, 128, memory kept, vLLM": Way(environment=KEEPS_MEMORY | VLLM_ENVIRONMENT, options=VLLM_OPTIONS),
    "2 processes, 128, memory kept, vLLM mended": Way(
        environment=KEEPS_MEMORY | VLLM_ENVIRONMENT, options=VLLM_OPTIONS, mended=True
    ),
}
