"""The simulated engine: plausible, repeatable, and as strict about its weights as a real one."""

import socket
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from entrostat.actors.simulated import SimulatedEngine
from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.messages import (
    FINISHED_LENGTH,
    PolicyVersion,
    Prompt,
    Samples,
    SharedFile,
    TensorSpec,
    WeightsManifest,
)
from entrostat.protocol.ports import SampleRequest
from entrostat.protocol.settings import SimulatedSettings
from tests.fake_stations import Letters
from tests.made_messages import probe

FAST = SimulatedSettings(tokens_per_second=1e9, skill=0.5)


def manifest(folder: Path, step: int, *, damage: bool = False) -> WeightsManifest:
    content = np.random.default_rng(step).integers(0, 255, 256, dtype=np.uint8)
    spec = TensorSpec(
        name="head",
        dtype="uint8",
        shape=(256,),
        offset=0,
        bytes=256,
        checksums=(xxhash.xxh3_64_intdigest(content.data),),
    )
    if damage:
        content[7] ^= 1
    path = folder / f"0.{step}"
    path.write_bytes(content.tobytes())
    return WeightsManifest(
        version=PolicyVersion(branch=0, step=step),
        tensors=(spec,),
        bytes=256,
        checksum=0,
        location=SharedFile(host=socket.gethostname(), path=str(path)),
        probe=probe(),
    )


def request(id: str, samples: int = 16, seed: int = 3, max_tokens: int = 100) -> SampleRequest:
    prompt = Prompt(id=0, name="p", level="l", task=0, text="12+30", answer="42", entry="")
    return SampleRequest(
        id=id,
        prompt_tokens=Letters().encode(prompt.text),
        samples=samples,
        temperature=1.0,
        max_tokens=max_tokens,
        seed=seed,
        prompt=prompt,
    )


def engine(folder: Path, settings: SimulatedSettings = FAST) -> SimulatedEngine:
    made = SimulatedEngine(settings, Letters())
    made.load(manifest(folder, 0))
    return made


def finish(running: SimulatedEngine) -> dict[str, Samples]:
    found: dict[str, Samples] = {}
    deadline = time.monotonic() + 10
    while running.unfinished and time.monotonic() < deadline:
        found |= {completion.id: completion.samples for completion in running.step()}
    return found


def texts(samples: Samples) -> list[str]:
    return [Letters().decode(piece) for piece in np.split(samples.tokens, np.cumsum(samples.lengths)[:-1])]


def test_the_same_seed_draws_the_same_samples_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = engine(tmp_path), engine(tmp_path), engine(tmp_path)
    first.submit(request("a"))
    again.submit(request("a"))
    other.submit(request("a", seed=4))
    one, two, three = (finish(made)["a"] for made in (first, again, other))
    assert one.tokens.tolist() == two.tokens.tolist()
    assert one.logprobs.tolist() == two.logprobs.tolist()
    assert one.tokens.tolist() != three.tokens.tolist()


def test_the_share_of_right_answers_grows_with_the_version(tmp_path: Path) -> None:
    made = engine(tmp_path, SimulatedSettings(tokens_per_second=1e9, skill=0.2, learning=0.1))
    shares = []
    for step in (0, 6):
        made.load(manifest(tmp_path, step))
        made.submit(request(f"v{step}", samples=400))
        shares.append(np.mean(["<answer>42</answer>" in text for text in texts(finish(made)[f"v{step}"])]))
    assert shares[0] == pytest.approx(0.2, abs=0.06)
    assert shares[1] == pytest.approx(0.8, abs=0.06)


def test_flat_arrays_belong_together(tmp_path: Path) -> None:
    made = engine(tmp_path)
    made.submit(request("a", samples=8, max_tokens=22))
    samples = finish(made)["a"]
    assert samples.lengths.sum() == len(samples.tokens) == len(samples.logprobs)
    assert (samples.lengths <= 22).all()
    assert (samples.finish == FINISHED_LENGTH).any()
    assert (samples.logprobs <= 0).all()


def test_an_update_between_two_steps_shows_in_the_spans(tmp_path: Path) -> None:
    made = engine(tmp_path)
    made.submit(request("a", samples=4))
    for _ in range(3):
        made.step()
    made.load(manifest(tmp_path, 1))
    samples = finish(made)["a"]
    for index in range(4):
        rows = samples.spans[samples.spans[:, 0] == index].tolist()
        assert rows == [[index, 0, 0, 0], [index, 3, 0, 1]]


def test_two_updates_between_the_same_steps_leave_the_later_one(tmp_path: Path) -> None:
    made = engine(tmp_path)
    made.submit(request("a", samples=1))
    made.load(manifest(tmp_path, 1))
    made.load(manifest(tmp_path, 2))
    assert finish(made)["a"].spans.tolist() == [[0, 0, 0, 2]]


def test_a_damaged_buffer_is_refused_and_the_version_before_served_on(tmp_path: Path) -> None:
    made = engine(tmp_path)
    with pytest.raises(WeightsRefused, match="head"):
        made.load(manifest(tmp_path, 1, damage=True))
    assert made.version == PolicyVersion(branch=0, step=0)


def test_a_missing_or_short_buffer_is_refused(tmp_path: Path) -> None:
    made = engine(tmp_path)
    gone = manifest(tmp_path, 1)
    (tmp_path / "0.1").write_bytes(b"short")
    with pytest.raises(WeightsRefused, match="256"):
        made.load(gone)
    (tmp_path / "0.1").unlink()
    with pytest.raises(WeightsRefused, match="can't be mapped"):
        made.load(gone)


def test_an_engine_without_weights_serves_nothing() -> None:
    with pytest.raises(WeightsRefused, match="nothing yet"):
        SimulatedEngine(FAST, Letters()).submit(request("a"))


def test_an_aborted_request_never_comes_back(tmp_path: Path) -> None:
    made = engine(tmp_path)
    made.submit(request("a"))
    made.submit(request("b"))
    made.step()
    made.abort(["a"])
    assert set(finish(made)) == {"b"}


def test_tokens_take_their_time_in_short_steps(tmp_path: Path) -> None:
    made = engine(tmp_path, SimulatedSettings(tokens_per_second=300.0))
    made.submit(request("a", samples=16, max_tokens=12))
    began = time.monotonic()
    steps = 0
    found: list[Samples] = []
    while made.unfinished:
        found += [completion.samples for completion in made.step()]
        steps += 1
    tokens, rounds = int(found[0].lengths.sum()), int(found[0].lengths.max())
    assert time.monotonic() - began >= 0.8 * tokens / 300.0
    assert steps > 1.2 * rounds, "a round that takes longer than a step may is waited for in several"


def test_a_step_takes_as_long_for_few_samples_as_for_many_until_they_are_too_many(tmp_path: Path) -> None:
    seconds = []
    for samples, settings in (
        (2, SimulatedSettings(tokens_per_second=1e9, step_seconds=0.004)),
        (64, SimulatedSettings(tokens_per_second=1e9, step_seconds=0.004)),
        (64, SimulatedSettings(tokens_per_second=64 / 0.012, step_seconds=0.004)),
    ):
        made = engine(tmp_path, settings)
        made.submit(request("a", samples=samples, max_tokens=20))
        began = time.monotonic()
        assert finish(made)["a"].lengths.max() == 20
        seconds.append(time.monotonic() - began)
    assert seconds[0] >= 19 * 0.004
    assert seconds[1] == pytest.approx(seconds[0], rel=0.5)
    assert seconds[2] >= 2 * seconds[1]


def test_waiting_costs_no_processor_time_and_sleeps_too_long_are_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds + 0.003))
    made = engine(tmp_path, SimulatedSettings(tokens_per_second=1e9, step_seconds=0.005))
    made.submit(request("a", samples=2, max_tokens=40))
    began, used = time.monotonic(), time.thread_time()
    rounds = int(finish(made)["a"].lengths.max())
    seconds = time.monotonic() - began
    assert 0.9 * rounds * 0.005 < seconds < 1.3 * rounds * 0.005
    assert time.thread_time() - used < 0.5 * seconds


def test_thoughts_have_a_heavy_tail_where_that_is_asked_for(tmp_path: Path) -> None:
    made = engine(tmp_path, SimulatedSettings(tokens_per_second=1e9, median_tokens=100, spread=0.8))
    made.submit(request("a", samples=600, max_tokens=1000))
    answer = len(Letters().encode("<answer>42</answer>"))
    thoughts = np.sort(finish(made)["a"].lengths - answer)
    assert np.median(thoughts) == pytest.approx(100, rel=0.15)
    assert np.mean(thoughts) == pytest.approx(100 * np.exp(0.8**2 / 2), rel=0.15)
    assert np.log(thoughts).std() == pytest.approx(0.8, rel=0.15)


def test_no_thought_is_longer_than_a_response_may_be(tmp_path: Path) -> None:
    made = engine(tmp_path, SimulatedSettings(tokens_per_second=1e9, median_tokens=10**6, spread=9.0))
    made.submit(request("a", samples=8, max_tokens=30))
    samples = finish(made)["a"]
    assert samples.lengths.max() == 30
    assert (samples.finish == FINISHED_LENGTH).any()
