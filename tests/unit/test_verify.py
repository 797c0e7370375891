import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from entrostat import verify
from entrostat.protocol.errors import ConfigError, StationLost, TaskError
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.task_settings import Jsonl
from entrostat.protocol.verifier_settings import Custom, Numeric
from entrostat.responses import Fault, Response, read
from entrostat.verify import LOOK_AHEAD, Options

FIELDS = {"answer": "gold", "response": "out.text"}


def lines(tmp_path: Path, content: bytes, answer_after: str = "") -> list[Response | Fault]:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    return list(read(file, FIELDS, answer_after))


def row(gold: object, text: object) -> bytes:
    return json.dumps({"gold": gold, "out": {"text": text}}).encode() + b"\n"


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_is_a_response_with_the_answer_that_was_expected(tmp_path: Path) -> None:
    first, second = lines(tmp_path, row(" 18 ", "it is 18") + row(27.0, 27))
    assert isinstance(first, Response)
    assert isinstance(second, Response)
    assert (first.index, first.prompt.name, first.prompt.answer, first.text) == (0, "x.jsonl:1", "18", "it is 18")
    assert (second.prompt.answer, second.text) == ("27.0", "27")


def test_a_key_with_a_dot_in_it_is_found_as_it_is(tmp_path: Path) -> None:
    [line] = lines(tmp_path, b'{"gold": 1, "out.text": "a", "out": {"text": "b"}}')
    assert isinstance(line, Response)
    assert line.text == "a"


def test_bytes_that_are_no_text_are_replaced_and_half_characters_kept(tmp_path: Path) -> None:
    [first, second] = lines(
        tmp_path, b'{"gold": 1, "out": {"text": "caf\xe9 1"}}\n{"gold": 1, "out": {"text": "\\ud800 1"}}'
    )
    assert isinstance(first, Response)
    assert isinstance(second, Response)
    assert first.text == "caf� 1"
    assert second.text == "\ud800 1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{not json\n", "x.jsonl:1 is not JSON"),
        (b"\xff\xfe\n", "x.jsonl:1 is not JSON"),
        (b"[" * 100_000 + b"\n", "x.jsonl:1 is not JSON"),
        (b"[1]\n", "x.jsonl:1 holds a list; expected an object"),
        (b'{"gold": 1}\n', "has no field 'out.text' for the response; it has: gold"),
        (b'{"gold": 1, "out": "text"}\n', "has no field 'out.text' for the response"),
        (b'{"gold": null, "out": {"text": ""}}\n', "has null in 'gold'; expected text or a number"),
        (b'{"gold": true, "out": {"text": ""}}\n', "has a bool in 'gold'"),
        (b'{"gold": NaN, "out": {"text": ""}}\n', "has nan in 'gold'; expected text or a number"),
        (b'{"gold": 1, "out": {"text": -Infinity}}\n', "has -inf in 'out.text'; expected text or a number"),
        (b'{"gold": 1e999, "out": {"text": ""}}\n', "has inf in 'gold'; expected text or a number"),
        (b"\n" + row(1, "1"), "x.jsonl:1 is empty"),
    ],
)
def test_a_line_that_cannot_be_judged_says_where_and_why(tmp_path: Path, content: bytes, said: str) -> None:
    first = lines(tmp_path, content)[0]
    assert isinstance(first, Fault)
    assert said in first.reason


def test_a_mark_of_the_byte_order_at_the_files_begin_is_no_fault(tmp_path: Path) -> None:
    first, second = lines(tmp_path, b"\xef\xbb\xbf" + row(1, "1") + b"\xef\xbb\xbf" + row(1, "1"))
    assert isinstance(first, Response)
    assert isinstance(second, Fault)


def test_lines_keep_their_numbers_and_empty_ones_at_the_end_are_none(tmp_path: Path) -> None:
    found = lines(tmp_path, row(1, "1") + b"\n" + b"oh\n" + row(1, "1") + b"\n \n")
    assert [line.index for line in found] == [0, 1, 2, 3]
    assert [isinstance(line, Fault) for line in found] == [False, True, True, False]


def test_the_answer_may_follow_a_mark(tmp_path: Path) -> None:
    first, second = lines(tmp_path, row("3 + 4\n#### 7", "7") + row("7", "7"), "####")
    assert isinstance(first, Response)
    assert first.prompt.answer == "7"
    assert isinstance(second, Fault)
    assert "has no '####' in 'gold'" in second.reason


# ── what to judge with ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_verifier_is_named_with_its_settings() -> None:
    assert verify.named("numeric", ["relative_tolerance=0.5"]) == Numeric(relative_tolerance=0.5)
    assert verify.named("my.rewards:score", []) == Custom(function="my.rewards:score")


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("maths", [], "did you mean math"),
        ("weighted", [], "--config RUN.toml"),
        ("reasoning_gym", [], "--config RUN.toml"),
        ("numeric", ["tolerance=1"], "did you mean relative_tolerance|absolute_tolerance"),
        ("numeric", ["relative_tolerance=-1"], "relative_tolerance = -1"),
        ("my:own:one", [], "function"),
    ],
)
def test_a_verifier_that_there_is_none_of_is_refused_with_the_nearest(
    name: str, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        verify.named(name, overrides)


def test_either_a_verifier_or_a_run_is_named() -> None:
    with pytest.raises(ConfigError, match="either --verifier NAME or --config"):
        verify.find(Options(file=Path("x")))


def test_a_runs_own_task_judges(quickstart: Path) -> None:
    options = Options(file=Path("x"), config=quickstart, deadline_seconds=3.0)
    task, settings = verify.find(options)
    assert task.verifier.__struct_config__.tag == "reasoning_gym"
    assert settings.deadline_seconds == 3.0
    assert verify.field_map([], task) == {"answer": "answer", "response": "response", "entry": "entry"}
    with pytest.raises(ConfigError, match="--task 99"):
        verify.find(Options(file=Path("x"), config=quickstart, task=99))


@pytest.mark.parametrize("text", ["answer", "answer=", "gold=x", "=x"])
def test_a_field_needs_a_role_and_a_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected answer=KEY or response=KEY"):
        verify.field_map([text], Jsonl(path="x"))


def test_a_file_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, said in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty", "is empty"),
    ):
        with pytest.raises(TaskError, match=said):
            verify.check_file(path)


def test_a_dash_is_the_standard_input() -> None:
    assert verify.file_of(Path("-")) == Path("/dev/stdin")
    assert verify.file_of(Path("answers.jsonl")) == Path("answers.jsonl")


# ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class LastFirst:
    """Judges what waits in the opposite order, one at each wait."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.judged: list[tuple[object, Verdict]] = []
        self.most = 0

    @property
    def pending(self) -> int:
        return len(self.waiting) + len(self.judged)

    def submit(self, ticket: int, prompt: Prompt, text: str) -> None:
        del prompt, text
        self.waiting.append(ticket)
        self.most = max(self.most, self.pending)

    def wait(self, seconds: float) -> bool:
        del seconds
        self.judged.append((self.waiting.pop(), Verdict(reward=1.0, status="correct", seconds=0.0)))
        return True

    def collect(self) -> list[tuple[object, Verdict]]:
        judged, self.judged = self.judged, []
        return judged


def endless(count: int, taken: list[int]) -> Iterator[Response | Fault]:
    prompt = Prompt(id=0, name="p", level="", task=0, text="", answer="1", entry="")
    for index in range(count):
        taken.append(index)
        yield (
            Fault(index=index, reason="bad")
            if index % 7 == 3
            else Response(index=index, prompt=prompt, text="", bytes=9)
        )


def test_lines_come_in_order_whatever_the_order_of_the_verdicts_and_few_are_held() -> None:
    pool, taken = LastFirst(), list[int]()
    indices = []
    for judged in verify.judge(pool, endless(3 * LOOK_AHEAD, taken)):
        indices.append(judged.line.index)
        assert judged.verdict.status == ("error" if isinstance(judged.line, Fault) else "correct")
        assert len(taken) - len(indices) <= LOOK_AHEAD
    assert indices == list(range(3 * LOOK_AHEAD))
    assert pool.most <= LOOK_AHEAD


class FirstFirst(LastFirst):
    """Judges what waits in its order."""

    def wait(self, seconds: float) -> bool:
        self.waiting.reverse()
        try:
            return super().wait(seconds)
        finally:
            self.waiting.reverse()


def test_a_line_is_given_out_before_the_next_ones_are_judged() -> None:
    pool, taken = FirstFirst(), list[int]()
    judged = verify.judge(pool, endless(10, taken))
    assert next(judged).line.index == 0
    assert len(pool.waiting) == 8  # but for a fault, those behind it
    assert [one.line.index for one in judged] == list(range(1, 10))


class Forgetful(LastFirst):
    """Loses the verdict on the third line."""

    def collect(self) -> list[tuple[object, Verdict]]:
        return [(ticket, verdict) for ticket, verdict in super().collect() if ticket != 2]


def test_a_verdict_that_never_comes_is_an_error_and_no_endless_wait() -> None:
    with pytest.raises(StationLost, match="no verdict on line 3"):
        list(verify.judge(Forgetful(), endless(10, [])))
