"""Publishing: what lies in shared memory is what the manifest says, and nothing is left behind."""

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load_file
from transformers import Qwen3MoeForCausalLM

from entrostat.learner import probe
from entrostat.learner.ipc import BUFFERS, IpcPublisher, Ring
from entrostat.learner.policy import load_policy
from entrostat.learner.segment import Segment
from entrostat.learner.shared_memory import SharedMemoryPublisher, remove_leftovers
from entrostat.learner.trainer import Trainer
from entrostat.learner.weights import layout
from entrostat.protocol import wire
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.messages import CudaMemory, PolicyVersion, Probe, SharedFile, WeightsManifest
from entrostat.protocol.settings import ModelSettings
from tests.tiny_policy import make_group, make_one_layer, make_order, make_policy, make_prompts, make_stations

VERSION = PolicyVersion(branch=2, step=5)


def some_probe() -> Probe:
    sequences = [np.array([3, 4, 5], np.int32)]
    return probe.make_probe(sequences, [np.array([-1.0, -2.0], np.float32)], None, 1e-4)


def version(step: int) -> PolicyVersion:
    return PolicyVersion(branch=2, step=step)


def path_of(manifest: WeightsManifest) -> Path:
    assert isinstance(manifest.location, SharedFile)
    return Path(manifest.location.path)


def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shared = torch.randn(7, 5, generator=random)
    return {
        "embed.weight": shared,
        "norm.weight": torch.randn(3, generator=random).bfloat16(),
        "transposed.weight": torch.randn(4, 6, generator=random).T,
        "scale": torch.tensor(2.0),
        "lm_head.weight": shared,
    }


def test_every_tensor_lies_where_the_manifest_says_with_its_checksum(tmp_path: Path) -> None:
    publisher = SharedMemoryPublisher("run", tmp_path)
    wanted = tensors()
    manifest = publisher.publish(VERSION, wanted, some_probe())
    manifest = wire.decode(wire.encode(manifest), WeightsManifest)
    data = path_of(manifest).read_bytes()
    assert len(data) == manifest.bytes
    assert [spec.name for spec in manifest.tensors] == list(wanted)
    for spec in manifest.tensors:
        piece = data[spec.offset : spec.offset + spec.bytes]
        assert spec.offset % 64 == 0
        assert (xxhash.xxh3_64_intdigest(piece),) == spec.checksums
        found = torch.frombuffer(bytearray(piece), dtype=getattr(torch, spec.dtype)).reshape(spec.shape)
        assert torch.equal(found, wanted[spec.name])
    joined = b"".join(one.to_bytes(8, "little") for spec in manifest.tensors for one in spec.checksums)
    assert manifest.checksum == xxhash.xxh3_64_intdigest(joined)
    publisher.close()


def test_a_tied_head_is_listed_under_its_own_name_and_stored_once(tmp_path: Path) -> None:
    publisher = SharedMemoryPublisher("run", tmp_path)
    manifest = publisher.publish(VERSION, tensors(), some_probe())
    places = {spec.name: spec for spec in manifest.tensors}
    assert places["lm_head.weight"].offset == places["embed.weight"].offset
    assert places["lm_head.weight"].checksums == places["embed.weight"].checksums
    assert manifest.bytes < sum(spec.bytes for spec in manifest.tensors) + 64 * 4
    publisher.close()


def test_tensors_of_equal_size_that_share_no_memory_lie_apart() -> None:
    places, size = layout({"a": torch.zeros(16), "b": torch.zeros(16)})
    assert [place.offset for place in places] == [0, 64]
    assert size == 128


def test_only_the_newest_two_versions_are_kept(tmp_path: Path) -> None:
    publisher = SharedMemoryPublisher("run", tmp_path)
    paths = [path_of(publisher.publish(version(step), tensors(), some_probe())) for step in range(5)]
    assert [path.exists() for path in paths] == [False, False, False, True, True]
    publisher.close()
    assert list(tmp_path.iterdir()) == []
    publisher.close()


def test_a_dead_learners_files_are_removed_and_a_living_ones_are_not(tmp_path: Path) -> None:
    living = SharedMemoryPublisher("living", tmp_path)
    kept = path_of(living.publish(VERSION, tensors(), some_probe()))
    dead = SharedMemoryPublisher("dead", tmp_path)
    left = path_of(dead.publish(VERSION, tensors(), some_probe()))
    os.close(dead._lock)  # as the kernel does when the process dies
    dead._lock = -1
    foreign = tmp_path / "entrostat-notes"
    foreign.mkdir()
    assert remove_leftovers(tmp_path) == [left.parent]
    assert kept.exists()
    assert foreign.exists()
    assert not left.parent.exists()
    living.close()


def test_a_run_with_a_strange_name_gets_a_directory_of_a_plain_one(tmp_path: Path) -> None:
    publisher = SharedMemoryPublisher("../my run/ü" + "x" * 300, tmp_path)
    (directory,) = tmp_path.iterdir()
    assert directory.name.startswith("entrostat-.._my_run__")
    assert str(os.getpid()) in directory.name
    publisher.close()


def test_too_little_shared_memory_is_told_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    publisher = SharedMemoryPublisher("run", tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match=r"needs \d+ bytes of shared memory .* free .*--shm-size"):
        publisher.publish(VERSION, tensors(), some_probe())
    publisher.close()


def test_a_version_that_can_not_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"64 bytes can't be written to .*missing/v \(No such file or directory\)"):
        Segment(tmp_path / "missing/v", 64)


def test_a_version_that_can_not_be_mapped_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    open_before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(ResourceError, match=r"needs 64 bytes .* free \(Cannot allocate memory\)"):
        Segment(tmp_path / "v", 64)
    assert not list(tmp_path.iterdir())
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == open_before


def test_shared_memory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="mount a tmpfs"):
        SharedMemoryPublisher("run", tmp_path / "missing")


def test_ipc_needs_a_gpu() -> None:
    with pytest.raises(ResourceError, match="shared_memory"):
        IpcPublisher(torch.device("cpu"))


def test_device_buffers_are_used_in_turn_and_each_is_exported_once() -> None:
    exported: list[int] = []

    def export(buffer: torch.Tensor) -> CudaMemory:
        exported.append(buffer.data_ptr())
        return CudaMemory(
            host="here",
            device_uuid="a GPU",
            handle=bytes([len(exported)]),
            storage_bytes=buffer.nbytes,
            storage_offset_bytes=0,
            reference_handle=b"",
            reference_offset=0,
            event_handle=b"",
            event_sync=True,
        )

    ring = Ring(torch.device("cpu"), 64, export)
    turns = [ring.turn() for _ in range(2 * BUFFERS + 1)]
    assert [place.handle for _, place in turns] == [b"\1", b"\2", b"\3"] * 2 + [b"\1"]
    assert [buffer.data_ptr() for buffer, _ in turns] == exported * 2 + exported[:1]
    assert len(set(exported)) == len(exported) == BUFFERS


def test_the_first_versions_probe_is_made_of_prompts_and_far_from_the_version_before() -> None:
    prompts = [np.arange(5, dtype=np.int32), np.arange(100, dtype=np.int32), np.array([7], np.int32)]
    sequences = probe.first_sequences(prompts, 2, seed=0)
    assert [len(sequence) for sequence in sequences] == [13, 64]
    assert sequences[0][:5].tolist() == [0, 1, 2, 3, 4]
    assert set(sequences[0].tolist()) <= set(range(100))
    found = some_probe()
    assert np.all(np.abs(found.previous - found.logprobs) > 100 * found.tolerance)


def test_later_probes_are_the_shortest_samples() -> None:
    groups = [make_group(i) for i in range(6)]
    sequences = probe.sequences_of(groups, 2)
    lengths = sorted(len(g.rollout.prompt_tokens) + int(g.rollout.samples.lengths[0]) for g in groups)
    assert [len(sequence) for sequence in sequences] == lengths[:2]


def test_the_tolerance_is_the_setting_or_the_dtypes_own() -> None:
    assert probe.tolerance(0.0, "float32") == 1e-4
    assert probe.tolerance(0.0, "bfloat16") == 5e-2
    assert probe.tolerance(0.3, "float32") == 0.3


@pytest.mark.parametrize("tied", [True, False])
def test_published_weights_compute_what_their_probe_says(tmp_path: Path, tied: bool) -> None:
    torch.set_num_threads(1)
    model = make_policy(tmp_path / "policy", tied=tied)
    trainer = Trainer(
        make_stations(model, tmp_path), make_prompts(), PolicyVersion(branch=0, step=0), shared_memory=tmp_path
    )
    groups = [make_group(i) for i in range(5)]
    first = trainer.publish_first()
    second = trainer.train(make_order(groups, trainer.version), groups, wait=0.0, fetch=0.0).manifest
    assert "lm_head.weight" in {spec.name for spec in second.tensors}
    for manifest, others in ((first, None), (second, first)):
        loaded = rebuilt(model, manifest)
        assert logprobs(loaded, manifest) == pytest.approx(manifest.probe.logprobs.tolist(), abs=1e-6)
        if others is not None:
            before = rebuilt(model, others)
            assert logprobs(before, manifest) == pytest.approx(manifest.probe.previous.tolist(), abs=1e-6)
            assert np.abs(manifest.probe.previous - manifest.probe.logprobs).max() > 1e-3
    trainer.close()


def test_weights_are_published_under_the_names_of_their_checkpoint(tmp_path: Path) -> None:
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    folder = make_one_layer(tmp_path / "policy", Qwen3MoeForCausalLM, tie_word_embeddings=True, **experts)
    policy = load_policy(ModelSettings(path=str(folder)), source=str(folder), device=torch.device("cpu"))
    saved = load_file(folder / "model.safetensors")
    published = policy.named_tensors()
    assert "model.layers.0.mlp.experts.2.up_proj.weight" in published
    assert published.keys() == saved.keys() | {"lm_head.weight"}
    for name, tensor in saved.items():
        assert torch.equal(published[name], tensor)
    assert published["lm_head.weight"].data_ptr() == published["model.embed_tokens.weight"].data_ptr()


def rebuilt(model: Path, manifest: WeightsManifest) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    data = path_of(manifest).read_bytes()
    state = {
        spec.name: torch.frombuffer(
            bytearray(data[spec.offset : spec.offset + spec.bytes]), dtype=getattr(torch, spec.dtype)
        ).reshape(spec.shape)
        for spec in manifest.tensors
    }
    made: torch.nn.Module = AutoModelForCausalLM.from_pretrained(model)
    made.load_state_dict(state)
    return made


def logprobs(model: torch.nn.Module, manifest: WeightsManifest) -> list[float]:
    found: list[float] = []
    for sequence in np.split(manifest.probe.tokens, np.cumsum(manifest.probe.lengths)[:-1]):
        ids = torch.tensor(sequence[None], dtype=torch.int64)
        with torch.no_grad():
            table = model(input_ids=ids).logits[0].log_softmax(-1)
        found += [table[t - 1, sequence[t]].item() for t in range(1, len(sequence))]
    return found
