"""Messages become bytes and come back, or a named error says why not."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.protocol import messages, wire
from entrostat.protocol.errors import ChecksumMismatch, SchemaMismatch, WireError
from entrostat.protocol.messages import Lease, PolicyVersion, Rollout, Samples


def rollout(tokens: int, prompt: int = 3) -> Rollout:
    generator = np.random.default_rng(tokens)
    version = PolicyVersion(branch=0, step=4)
    return Rollout(
        lease=Lease(id=7, prompt_id=2, samples=2, version=version, seed=1, deadline_seconds=30.0),
        slot=0,
        incarnation=1,
        started=version,
        prompt_tokens=np.arange(prompt, dtype=np.int32),
        samples=Samples(
            tokens=generator.integers(0, 100, tokens).astype(np.int32),
            logprobs=generator.normal(size=tokens).astype(np.float32),
            lengths=np.array([tokens // 2, tokens - tokens // 2], np.int32),
            finish=np.zeros(2, np.uint8),
            spans=np.array([[0, 0, 0, 4], [1, 0, 0, 4]], np.int32),
        ),
        seconds=0.5,
    )


@given(tokens=st.integers(0, 300), prompt=st.integers(0, 70))
@settings(max_examples=30)
def test_a_message_survives_the_way(tokens: int, prompt: int) -> None:
    sent = rollout(tokens, prompt)
    came = wire.decode(wire.encode(sent), Rollout)
    assert came.lease == sent.lease
    for field in ("tokens", "logprobs", "lengths", "finish", "spans"):
        np.testing.assert_array_equal(getattr(came.samples, field), getattr(sent.samples, field))
    np.testing.assert_array_equal(came.prompt_tokens, sent.prompt_tokens)


def test_token_arrays_are_views_of_the_frame_and_aligned() -> None:
    frame = wire.encode(rollout(1000))
    came = wire.decode(frame, Rollout)
    for array in (came.samples.tokens, came.samples.logprobs, came.prompt_tokens):
        assert np.shares_memory(array, frame)
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable


def test_a_frame_decodes_as_the_member_of_a_union_it_is() -> None:
    frame = wire.encode(rollout(4).lease)
    assert isinstance(wire.decode(frame, Lease | Rollout), Lease)


def test_another_schema_is_refused_by_name() -> None:
    frame = wire.encode(rollout(4))
    frame[4] += 1
    with pytest.raises(SchemaMismatch, match=f"reads {wire.SCHEMA_VERSION}"):
        wire.decode(frame, Rollout)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=60)
def test_one_flipped_bit_anywhere_is_found(place: int, bit: int) -> None:
    frame = wire.encode(rollout(100))
    at = place % len(frame)
    frame[at] ^= 1 << bit
    if 6 <= at < 8:
        return  # reserved bytes mean nothing yet
    with pytest.raises(WireError):
        wire.decode(frame, Rollout)


@given(junk=st.binary(max_size=200))
@settings(max_examples=60)
def test_junk_fails_to_decode_and_does_nothing_else(junk: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(junk, Rollout)


def test_a_frame_cut_short_says_so() -> None:
    with pytest.raises(WireError, match="cut short"):
        wire.decode(wire.encode(rollout(100))[:-10], Rollout)


def test_damage_is_a_checksum_mismatch() -> None:
    frame = wire.encode(rollout(100))
    frame[-1] ^= 1
    with pytest.raises(ChecksumMismatch):
        wire.decode(frame, Rollout)


def test_another_message_is_not_guessed_at() -> None:
    with pytest.raises(WireError, match="Rollout"):
        wire.decode(wire.encode(rollout(4).lease), Rollout)


def test_an_array_of_another_type_is_refused() -> None:
    wrong = msgspec.structs.replace(rollout(4).samples, logprobs=np.zeros(4, np.float64))
    with pytest.raises(WireError, match="<f8"):
        wire.decode(wire.encode(wrong), Samples)


def test_an_array_that_points_outside_its_frame_is_refused() -> None:
    class Samples(msgspec.Struct, tag="Samples"):  # the same tag, but references written by hand
        tokens: tuple[int, list[int], str] = (1 << 40, [4], "<i4")
        logprobs: tuple[int, list[int], str] = (0, [0], "<f4")
        lengths: tuple[int, list[int], str] = (0, [0], "<i4")
        finish: tuple[int, list[int], str] = (0, [0], "|u1")
        spans: tuple[int, list[int], str] = (0, [0, 4], "<i4")

    with pytest.raises(WireError):
        wire.decode(wire.encode(Samples()), messages.Samples)


def test_every_message_is_frozen_keyword_only_and_tagged() -> None:
    kinds = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    assert len(kinds) > 20
    for kind in kinds:
        config = kind.__struct_config__
        assert config.frozen, kind
        assert kind.__doc__, kind
        with pytest.raises(TypeError):
            kind(0)
