"""What can be known to fail is found before anything is written."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from entrostat import preflight
from entrostat.protocol.errors import ModelError, ResourceError, TaskError
from entrostat.protocol.learner_settings import AllWeights, Lora, TrainedWeights
from entrostat.protocol.task_settings import Jsonl
from entrostat.protocol.verifier_settings import Code, Format, Part, Weighted


@pytest.fixture
def model(starter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(starter, tmp_path / "model"))


def test_a_whole_model_is_found(model: Path) -> None:
    assert preflight.find_model(str(model)) == model


def test_a_missing_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model folder .*config\.json.*\[model\] path"):
        preflight.find_model(str(tmp_path / "none"))


def test_a_hub_name_that_is_not_to_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="nobody/nothing is neither a folder here nor to be had"):
        preflight.find_model("nobody/nothing")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "holds list, expected an object"),
        ("model.safetensors", None, r"no \*\.safetensors"),
        ("model.safetensors", "torn", "is damaged"),
        ("tokenizer.json", "{", "tokenizer"),
    ],
)
def test_a_broken_model_names_its_broken_file(model: Path, name: str, content: str | None, expected: str) -> None:
    if content is None:
        (model / name).unlink()
    else:
        (model / name).write_text(content)
    with pytest.raises(ModelError, match=expected):
        preflight.check_model(model)


def test_a_model_without_a_tokenizer_is_refused(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        preflight.check_model(model)


def test_weights_cut_short_are_found(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        preflight.check_model(model)


def test_a_tokenizer_without_eos_is_refused(model: Path) -> None:
    file = model / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        preflight.check_model(model)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_tokenizers_own_code_runs_only_if_it_is_trusted(
    model: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    asked = []

    class Tokenizer:
        eos_token_id = 1

        def __init__(self, source: Path, *, trust_remote_code: bool = False) -> None:
            asked.append(trust_remote_code)

    monkeypatch.setattr("entrostat.actors.tokenizer.HuggingFaceTokenizer", Tokenizer)
    preflight.find_model(str(model), trust_remote_code=trusted)
    assert asked == [trusted]


def test_too_little_shared_memory_says_how_much_is_needed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"shared memory .* has 100 MiB free, the run needs 26\d MiB"):
        preflight.check_space(model, tmp_path / "runs/a", 3)


def test_too_little_disk_says_how_much_is_needed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: real._replace(free=1 << 40 if str(path) == "/dev/shm" else 1 << 20)
    )
    with pytest.raises(ResourceError, match=r"5 checkpoints need"):
        preflight.check_space(model, tmp_path / "runs/a", 3)


@pytest.mark.parametrize(
    ("weights", "published", "checkpoint"),
    [
        # A policy of 1,024 MiB, of which an adapter is a sixteenth; moments are two times what is trained.
        (AllWeights(), 1024, 3 * 1024),
        (Lora(publish="merged"), 1024, 1024 + 2 * 64),
        (Lora(publish="adapter"), 64, 1024 + 2 * 64),
    ],
)
def test_adapters_need_less_room_where_they_alone_are_trained_or_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: TrainedWeights, published: int, checkpoint: int
) -> None:
    model, shared, disk = tmp_path / "model", tmp_path / "shm", tmp_path / "disk"
    for folder in (model, shared, disk):
        folder.mkdir()
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(1024 << 20)  # sparse
    monkeypatch.setattr(preflight, "parameter_count", lambda _: 1600)
    monkeypatch.setattr(preflight, "adapter_count", lambda *_: 100)
    needed = {shared: 3 * published + 256, disk: 5 * checkpoint}
    usage = shutil.disk_usage(tmp_path)
    for short in (None, shared, disk):
        free = {place: (mib << 20) - (place == short) for place, mib in needed.items()}
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: usage._replace(free=free[place]))
        if short is None:
            preflight.check_space(model, disk, 3, weights=weights, shared_memory=shared)
            continue
        with pytest.raises(ResourceError, match=rf"need[s]? {needed[short]:,} MiB"):
            preflight.check_space(model, disk, 3, weights=weights, shared_memory=shared)


def test_a_taken_port_is_found_beforehand() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceError, match=r"\[monitor\] port = 0"):
            preflight.check_port("127.0.0.1", taken.getsockname()[1])
    preflight.check_port("127.0.0.1", 0)


def test_programs_that_cannot_be_confined_end_a_run_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = TaskError("can't confine programs here")

    def refuse() -> None:
        raise refused

    monkeypatch.setattr(preflight, "require_confinement", refuse)
    weighted = Weighted(parts=(Part(weight=1.0, verifier=Format()), Part(weight=1.0, verifier=Code())))
    for verifier in (Code(), weighted):
        with pytest.raises(TaskError) as caught:
            preflight.check_verifiers([Jsonl(path="not read"), Jsonl(path="not read", verifier=verifier)])
        assert caught.value.exit_code == 2
    preflight.check_verifiers([Jsonl(path="not read"), Jsonl(path="not read", verifier=Code(unconfined=True))])
