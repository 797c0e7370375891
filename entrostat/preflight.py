"""Everything that can be known to fail before a run begins, so that nothing half-written is left behind."""

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from entrostat.actors.verifiers.custom import check_functions
from entrostat.actors.verifiers.sandbox import require_confinement
from entrostat.config import RunConfig
from entrostat.parameters import adapter_count, parameter_count
from entrostat.protocol.errors import ModelError, ResourceError
from entrostat.protocol.learner_settings import AllWeights, Lora, TrainedWeights
from entrostat.protocol.settings import VllmSettings
from entrostat.protocol.task_settings import TaskSettings
from entrostat.protocol.verifier_settings import Code, parts_of

SHARED_MEMORY = Path("/dev/shm")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
VERSIONS_IN_MEMORY = 3  # two that actors may still load, one in the making
RUNTIME_BYTES = 256 << 20  # Ray's object store and its neighbours, at the least
MOMENTS = 2  # of AdamW, in a checkpoint beside the policy


def find_model(path: str, *, trust_remote_code: bool = False) -> Path:
    """The folder of a model: a local one, or a hub's, downloaded or from its cache; its own code only if trusted.

    Raises:
        ModelError: there is none, or it lacks something.
    """
    folder = Path(path).expanduser()
    if not folder.exists() and path.count("/") == 1 and not path.startswith((".", "/", "~")):
        folder = _from_hub(path, code=trust_remote_code)
    check_model(folder, trust_remote_code=trust_remote_code)
    return folder.resolve()


def check_model(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Sees that a folder holds a whole model and a tokenizer with an end-of-sequence token.

    Raises:
        ModelError: names the folder, what is missing or broken, and what to do.
    """
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder {folder}: expected a folder in Hugging Face form (config.json, *.safetensors, "
            "tokenizer.json), or a hub name such as Qwen/Qwen3-0.6B; set [model] path"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no config.json: it is not a model in Hugging Face form") from error
    except ValueError as error:
        raise ModelError(f"{folder}/config.json is not JSON ({error}): copy the model again") from error
    except OSError as error:
        raise ModelError(f"{folder}/config.json can't be read ({error.strerror})") from error
    if not isinstance(config, dict):
        raise ModelError(
            f"{folder}/config.json holds {type(config).__name__}, expected an object: copy the model again"
        )
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise ModelError(f"{folder} has no tokenizer: expected its tokenizer.json there; copy the model again")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder} has no *.safetensors: expected the model's weights there; copy the model again")
    for file in weights:
        _check_safetensors(file)
    _check_tokenizer(folder, trust_remote_code=trust_remote_code)


def context_tokens(config: RunConfig, model: Path) -> int | None:
    """What the policy can hold, prompt and response together; None where nothing says so."""
    engine = config.rollout.engine
    if isinstance(engine, VllmSettings) and engine.max_model_tokens:
        return engine.max_model_tokens
    limit = json.loads((model / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


def check_port(host: str, port: int) -> None:
    """Sees that the controller will be able to listen.

    Raises:
        ResourceError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"the metrics endpoint can't listen on {host}:{port} ({error.strerror}): stop what uses the port, "
                "or set [monitor] port = 0 to pick a free one"
            ) from error


def check_space(
    model: Path,
    directory: Path,
    checkpoints: int,
    *,
    weights: TrainedWeights = AllWeights(),  # noqa: B008 - immutable
    shared_memory: Path = SHARED_MEMORY,
) -> None:
    """Sees that shared memory holds the weights in passing and the disk the checkpoints.

    Raises:
        ResourceError: says how much is free and how much is needed.
    """
    policy = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    published = trained = policy
    if isinstance(weights, Lora):
        trained = policy * adapter_count(str(model), weights) // max(parameter_count(str(model)), 1)
        published = trained if weights.publish == "adapter" else policy
    needed = VERSIONS_IN_MEMORY * published + RUNTIME_BYTES
    free = shutil.disk_usage(shared_memory).free
    if free < needed:
        raise ResourceError(
            f"shared memory ({shared_memory}) has {_mib(free)} free, the run needs {_mib(needed)} "
            f"({VERSIONS_IN_MEMORY} versions of {_mib(published)} and Ray's objects): free some, "
            "or enlarge it (docker run --shm-size, or a Memory emptyDir on Kubernetes)"
        )
    place = next(parent for parent in (directory, *directory.parents) if parent.exists())
    needed = (checkpoints + 2) * (policy + MOMENTS * trained)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"{place} has {_mib(free)} free, {checkpoints + 2} checkpoints need {_mib(needed)}: "
            "free some, choose another disk with --run DIR, or keep fewer ([checkpoint] keep)"
        )


def _from_hub(name: str, *, code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", *(["*.py"] if code else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        raise ModelError(
            f"the model {name} is neither a folder here nor to be had from the hub ({type(error).__name__}): "
            "check the name and the network, or download it elsewhere and set [model] path to the folder"
        ) from error


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as opened:
            if not opened.keys():
                raise ModelError(f"{file} holds no tensors: copy the model again")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged ({error}): copy the model again") from error


def _check_tokenizer(folder: Path, *, trust_remote_code: bool) -> None:
    from entrostat.actors.tokenizer import HuggingFaceTokenizer

    if HuggingFaceTokenizer(folder, trust_remote_code=trust_remote_code).eos_token_id is None:
        raise ModelError(
            f"the tokenizer in {folder} names no end-of-sequence token, so no response could ever end: "
            'set "eos_token" in its tokenizer_config.json'
        )


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def check_verifiers(tasks: Sequence[TaskSettings]) -> None:
    """Sees that programs can be confined and users' functions imported here; an actor elsewhere sees for itself.

    Raises:
        TaskError: a task that judges programs can't confine them and does not allow that, or a function is not there.
    """
    if any(isinstance(one, Code) and not one.unconfined for task in tasks for one in parts_of(task.verifier)):
        require_confinement()
    check_functions(tasks)
