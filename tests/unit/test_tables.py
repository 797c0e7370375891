"""Tables: every kind yields the same problems, bad rows are told by their place, parts are stable."""

import contextlib
import csv
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tasks.table import in_part, open_source, scan
from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import Prompt
from entrostat.protocol.task_settings import HuggingFace, Jsonl, Parquet
from tests import made_tables
from tests.made_tables import jsonl, kinds, parquet, saved

SUMS = [{"question": f"{number} + {number}?", "answer": str(2 * number)} for number in range(40)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library converts lies in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def without_level(prompts: tuple[Prompt, ...]) -> list[tuple[int, str, str, str]]:
    """A default level is called by the file."""
    return [(prompt.id, prompt.name, prompt.text, prompt.answer) for prompt in prompts]


# ── every kind ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_of_table_yields_the_same_prompts(tmp_path: Path) -> None:
    rows = [
        {"data": {"ask": f"{number}?", "is": [str(number), "x"]}, "hard": number % 3, "key": f"k{number}"}
        for number in range(30)
    ]
    mapping = {"question": "data.ask", "answer": "data.is.0", "level": "hard", "id": "key", "seed": 3}
    found = {
        kind: load_prompts([task]).prompts
        for kind, task in kinds(tmp_path, rows, **mapping, part="train", test_share=0.3, shuffle=True, limit=15).items()
    }
    assert len(found["jsonl"]) == 15
    assert found["jsonl"][0].name.startswith("problems#k")
    assert found["parquet"] == found["jsonl"]
    assert found["folder"] == found["jsonl"]
    assert found["saved"] == found["jsonl"]


def test_real_problems_are_the_same_in_every_kind_of_table(test_data: Path, tmp_path: Path) -> None:
    for file, mapping in (
        ("gsm8k_test.jsonl", {"answer_after": "####"}),
        ("gsm8k_train_1000.jsonl", {"answer_after": "####"}),
        ("aime24.jsonl", {"question": "problem", "id": "id"}),
        ("amc23.jsonl", {"id": "id"}),
    ):
        rows = [json.loads(line) for line in (test_data / file).read_text(encoding="utf-8").splitlines()]
        found = {
            kind: without_level(load_prompts([task]).prompts)
            for kind, task in kinds(tmp_path / file, rows, **mapping).items()
        }
        assert len(found["jsonl"]) == len(rows)
        assert all(one == found["jsonl"] for one in found.values()), file


def test_a_folder_may_hold_jsonl_or_csv_in_several_splits(tmp_path: Path) -> None:
    jsonl(tmp_path / "lines", SUMS[:3], "train.jsonl")
    jsonl(tmp_path / "lines", SUMS[3:5], "test.jsonl")
    (tmp_path / "text").mkdir()
    with (tmp_path / "text/train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(SUMS[:3])
    train = load_prompts([HuggingFace(dataset=str(tmp_path / "lines"))]).prompts
    test = load_prompts([HuggingFace(dataset=str(tmp_path / "lines"), split="test")]).prompts
    text = load_prompts([HuggingFace(dataset=str(tmp_path / "text"))]).prompts
    assert [prompt.answer for prompt in train] == ["0", "2", "4"]
    assert [prompt.name for prompt in test] == ["lines/test:1", "lines/test:2"]
    assert [prompt.answer for prompt in test] == ["6", "8"]
    assert [prompt.text for prompt in text] == [prompt.text for prompt in train]
    with pytest.raises(TaskError, match=r"split nowhere.*can't be read.*Unknown split"):
        load_prompts([HuggingFace(dataset=str(tmp_path / "lines"), split="nowhere")])


def test_a_saved_table_has_no_other_split(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="without a split 'test'"):
        load_prompts([saved(tmp_path / "saved", SUMS, split="test")])


def test_a_file_whose_rows_change_is_read_anew(tmp_path: Path) -> None:
    jsonl(tmp_path / "data", SUMS[:3], "train.jsonl")
    task = HuggingFace(dataset=str(tmp_path / "data"))
    before = load_prompts([task]).prompts
    jsonl(tmp_path / "data", SUMS[1:3], "train.jsonl")
    assert len(before) == 3
    assert [prompt.answer for prompt in load_prompts([task]).prompts] == ["2", "4"]


def test_no_code_of_a_dataset_runs(tmp_path: Path) -> None:
    parquet(tmp_path / "data", SUMS[:3], "train.parquet")
    (tmp_path / "data/data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    task = HuggingFace(dataset=str(tmp_path / "data"))
    with contextlib.suppress(TaskError):
        load_prompts([task])
    assert not (tmp_path / "ran").exists()


def test_a_bad_line_of_a_folder_is_told_with_its_reason(tmp_path: Path) -> None:
    jsonl(tmp_path / "data", [*SUMS, "{bad"], "train.jsonl")
    with pytest.raises(TaskError, match=r"data .split train. can't be read as a dataset .*JSON"):
        load_prompts([HuggingFace(dataset=str(tmp_path / "data"))])


def test_the_hub_without_a_network_is_a_sentence(tmp_path: Path) -> None:
    code = (
        "from entrostat.actors.tasks.load import load_prompts\n"
        "from entrostat.protocol.task_settings import HuggingFace\n"
        "from entrostat.protocol.errors import TaskError\n"
        "try:\n    load_prompts([HuggingFace(dataset='nobody/nothing', subset='main')])\n"
        "except TaskError as error:\n    print(error.exit_code, error)\n"
    )
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("2 the dataset nobody/nothing (split train, subset main) can't be had"), done.stderr
    assert "hf download nobody/nothing --repo-type dataset" in done.stdout


def test_a_run_on_jsonl_waits_for_neither_library(tmp_path: Path) -> None:
    file = jsonl(tmp_path, SUMS[:2]).path
    code = (
        "import sys\nimport entrostat.cli, entrostat.config, entrostat.explain\n"
        "from entrostat.actors.tasks.load import load_prompts\n"
        "from entrostat.protocol.task_settings import Jsonl\n"
        f"load_prompts([Jsonl(path={file!r})])\n"
        "print(sorted({'pyarrow', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def one(folder: Path, row: made_tables.Row, **mapping: str) -> Prompt:
    """The only prompt of a row in a Parquet file, which is that of the same row in JSONL."""
    [prompt] = load_prompts([jsonl(folder, [row], **mapping)]).prompts
    [other] = load_prompts([parquet(folder, [row], **mapping)]).prompts
    assert (prompt.text, prompt.answer) == (other.text, other.answer)
    return prompt


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (27, "27"),
        (27.0, "27"),
        (0.5, "0.5"),
        ("27.0", "27.0"),
        (-3, "-3"),
        (["a", "b"], '["a","b"]'),
        ({"x": [1]}, '{"x":[1]}'),
    ],
)
def test_numbers_are_written_out_and_lists_and_objects_as_json(tmp_path: Path, value: object, answer: str) -> None:
    assert one(tmp_path, {"question": "?", "answer": value}).answer == answer


def test_a_field_called_with_a_dot_goes_before_one_inside_another(tmp_path: Path) -> None:
    row = {"question": "?", "a.b": "outer", "a": {"b": "inner"}}
    assert one(tmp_path, row, answer="a.b").answer == "outer"


def test_a_list_where_one_item_was_meant_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_prompts([jsonl(tmp_path, [{"question": "?", "answer": ["1"]}])])
    assert "the math verifier gets them as JSON" in caplog.text
    assert "answer = 'answer.0'" in caplog.text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"a": {"b": "1"}}, "no field 'a.c' .*; a has: b"),
        ({"a": ["1"]}, "no field 'a.c' .*; a is a list of 1"),
        ({"a": None}, "no field 'a.c' .*; a is null"),
    ],
)
def test_a_field_that_is_missing_inside_another_says_what_is_there(
    tmp_path: Path, row: dict[str, object], said: str
) -> None:
    with pytest.raises(TaskError, match=rf"problems.jsonl:1: {said}"):
        load_prompts([jsonl(tmp_path, [{"question": "?", **row}], answer="a.c")])


def test_a_missing_column_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no column 'solution' .the task's setting answer.*it has: answer, question"):
        load_prompts([parquet(tmp_path, SUMS, answer="solution")])
    with pytest.raises(TaskError, match=r"saved.*no column 'solution'.*it has: answer, question"):
        load_prompts([saved(tmp_path / "saved", SUMS, answer="solution")])


# ── bad rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MIXED = ['{"question": "a", "answer": "1"}', "{", '{"question": "b"}', "", '{"question": " ", "answer": "2"}']


def test_all_bad_rows_are_counted_and_the_run_refused(tmp_path: Path) -> None:
    lines = [*MIXED, *(["[]"] * 5)]
    with pytest.raises(TaskError) as caught:
        load_prompts([jsonl(tmp_path, lines)])
    said = str(caught.value)
    assert '8 of 9 rows can\'t be used: mend them, or leave them out with bad_rows = "skip"' in said
    for place in ("problems.jsonl:2: not JSON", "problems.jsonl:3: no field 'answer'", "problems.jsonl:5: 'question'"):
        assert place in said
    assert "and 3 more" in said
    assert caught.value.exit_code == 2


def test_bad_rows_can_be_left_out_and_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts([jsonl(tmp_path, MIXED, bad_rows="skip")]).prompts
    assert [prompt.name for prompt in prompts] == ["problems.jsonl:1"]
    assert len(caplog.records) == 1
    assert "3 of 4 rows can't be used and are left out:\n  problems.jsonl:2: not JSON" in caplog.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f'{{"question": "b", "answer": {"[" * 10_000}{"]" * 10_000}}}', "not JSON .*nested"),
        (f'{{"question": "b", "answer": "1", "other": {"[" * 10_000}{"]" * 10_000}}}', "not JSON .*nested"),
    ],
)
def test_a_line_too_deep_to_be_decoded_is_a_bad_row(tmp_path: Path, line: str, said: str) -> None:
    table = scan(jsonl(tmp_path, [MIXED[0], line]))
    assert (len(table.problems), table.bad) == (1, 1)
    assert re.search(rf"problems.jsonl:2: {said}", table.named[0])


def test_an_integer_too_large_for_a_float_is_an_answer(tmp_path: Path) -> None:
    [problem] = scan(jsonl(tmp_path, [{"question": "2^2000", "answer": 2**2000}])).problems
    assert problem.answer == str(2**2000)


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"1 of 1 rows can't be used: nothing is left\n  problems.jsonl:1: "):
        load_prompts([jsonl(tmp_path, ["[]"], bad_rows="skip")])


def test_text_of_a_parquet_file_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    import pyarrow

    task = parquet(tmp_path, [])
    raw = pyarrow.array([b"a", b"\xff\xfe", b"c"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"question": raw, "answer": ["1", "2", "3"]})
    pyarrow.parquet.write_table(table, task.path)
    with pytest.raises(TaskError, match=r"1 of 3 rows .*\n  problems.parquet:2: not UTF-8"):
        load_prompts([task])
    kept = load_prompts([Parquet(path=task.path, bad_rows="skip")]).prompts
    assert [(prompt.name, prompt.text) for prompt in kept] == [("problems.parquet:1", "a"), ("problems.parquet:3", "c")]


@pytest.mark.parametrize("kind", ["timestamp[us]", "duration[s]"])
def test_a_value_that_python_has_no_room_for_is_a_bad_row(tmp_path: Path, kind: str) -> None:
    import pyarrow.parquet

    unit = {"timestamp[us]": pyarrow.timestamp("us"), "duration[s]": pyarrow.duration("s")}[kind]
    level = pyarrow.array([None, 2**62, None], unit)
    table = pyarrow.table({"question": ["a", "b", "c"], "answer": ["1", "2", "3"], "level": level})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    found = scan(Parquet(path=str(tmp_path / "p.parquet"), level="level"))
    assert found.bad == 3
    assert "p.parquet:2: can't be decoded" in found.named[1]
    assert "'level' is null" in found.named[2]


@pytest.mark.parametrize("group_rows", [1_000, 16_000])
def test_a_parquet_file_is_never_in_memory_as_a_whole(tmp_path: Path, group_rows: int) -> None:
    import pyarrow

    task = Parquet(path=str(tmp_path / "large.parquet"))
    rows = [{"question": f"{number:08}" * 256, "answer": "1", "junk": "x" * 4096} for number in range(16_000)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, task.path, row_group_size=group_rows, compression="none", use_dictionary=False)
    held = table.nbytes
    del table
    before, peak = pyarrow.total_allocated_bytes(), 0
    for number, _ in open_source(task).rows:
        if number % 512 == 0:
            peak = max(peak, pyarrow.total_allocated_bytes() - before)
    assert held > 64 << 20
    assert peak < 12 << 20


def test_a_damaged_parquet_file_is_a_sentence(tmp_path: Path) -> None:
    task = parquet(tmp_path, SUMS)
    whole = Path(task.path).read_bytes()
    for damaged in (b"", b"hello", whole[:-5], whole[:200] + b"\0" * 200 + whole[400:]):
        Path(task.path).write_bytes(damaged)
        with pytest.raises(TaskError, match=r"problems.parquet is no whole Parquet file \(.*: copy it again"):
            load_prompts([task])
    with pytest.raises(TaskError, match=r"can't be read .*expected a Parquet file"):
        load_prompts([Parquet(path=str(tmp_path / "nowhere.parquet"))])
    with pytest.raises(TaskError, match=r'is a folder.*kind = "huggingface"'):
        load_prompts([Parquet(path=str(tmp_path))])


def test_a_parquet_file_read_as_jsonl_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match='is a Parquet file, not JSONL: set the task\'s kind = "parquet"'):
        load_prompts([Jsonl(path=parquet(tmp_path, SUMS, "problems").path)])


def test_an_id_that_stands_twice_names_both_places(tmp_path: Path) -> None:
    rows = [{**row, "key": number % 2} for number, row in enumerate(SUMS[:3])]
    with pytest.raises(TaskError, match=r"problems.jsonl:3: has the same id as problems.jsonl:1 \(problems.jsonl#0\)"):
        load_prompts([jsonl(tmp_path, rows, id="key")])


# ── parts and order ──────────────────────────────────────────────────────────────────────────────────────────────────


def asked(task: Jsonl) -> set[str]:
    return {problem.question for problem in scan(task).problems}


@settings(max_examples=30)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=80), st.integers(0, 5), st.floats(0.05, 0.9))
def test_parts_share_no_question_and_hold_all_of_them(numbers: list[int], seed: int, share: float) -> None:
    task = Jsonl(path="", seed=seed, test_share=share, part="test")
    for number in numbers:
        question = f"{number} + 1?"
        other = Jsonl(path="", seed=seed, test_share=share, part="train")
        assert in_part(task, question) != in_part(other, question)
        assert in_part(task, question) == in_part(task, f" {number}  + 1?\n")


def test_about_the_share_asked_for_is_held_out_and_another_seed_holds_out_others() -> None:
    def held(seed: int) -> set[int]:
        task = Jsonl(path="", seed=seed, test_share=0.2, part="test")
        return {number for number in range(5000) if in_part(task, f"question {number}")}

    assert 900 < len(held(0)) < 1100  # 1000 ± 3.5 standard deviations
    assert held(0) != held(1)
    assert 120 < len(held(0) & held(1)) < 280  # a fifth of a fifth: one seed's says nothing of the other's


def test_more_rows_move_no_question_between_parts(tmp_path: Path) -> None:
    few, many = SUMS[5:25], [*SUMS[30:], *SUMS[:25]]
    small = asked(jsonl(tmp_path, few, "few.jsonl", part="test", test_share=0.4, seed=1))
    large = asked(jsonl(tmp_path, many, "many.jsonl", part="test", test_share=0.4, seed=1))
    assert small
    assert small == large & {row["question"] for row in few}


def test_a_question_that_stands_twice_is_in_one_part(tmp_path: Path) -> None:
    rows = [*SUMS, *({**row, "answer": "?"} for row in SUMS)]
    train, test = (jsonl(tmp_path, rows, part=part, test_share=0.5) for part in ("train", "test"))
    assert not asked(train) & asked(test)
    assert len(scan(train).problems) + len(scan(test).problems) == 80
    assert load_prompts([test], unlike=[train]) == load_prompts([test])


def test_conversations_that_end_alike_are_parted_by_all_that_was_said(tmp_path: Path) -> None:
    def said(story: int) -> list[dict[str, str]]:
        texts = (("user", f"story {story}"), ("assistant", "ok"), ("user", "And the answer?"))
        return [{"role": role, "content": text} for role, text in texts]

    rows = [{"question": said(story), "answer": "1"} for story in range(200)]
    table = scan(jsonl(tmp_path, rows, part="test", test_share=0.2))
    assert 20 <= len(table.problems) <= 60
    assert len(table.problems) + table.other_part == 200


def test_an_empty_part_is_said(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match='none of the 1 problems falls into part = "test"'):
        load_prompts([jsonl(tmp_path, SUMS[:1], part="test", test_share=1e-9)])


def test_shuffling_keeps_every_problem_and_its_name_and_comes_before_the_limit(tmp_path: Path) -> None:
    plain = load_prompts([jsonl(tmp_path, SUMS)]).prompts
    shuffled = load_prompts([jsonl(tmp_path, SUMS, shuffle=True, seed=4)]).prompts
    other = load_prompts([jsonl(tmp_path, SUMS, shuffle=True, seed=5)]).prompts
    first = load_prompts([jsonl(tmp_path, SUMS, shuffle=True, seed=4, limit=7)]).prompts
    named = [prompt.name for prompt in shuffled]
    assert sorted(named) == sorted(prompt.name for prompt in plain)
    assert named != [prompt.name for prompt in plain]
    assert named != [prompt.name for prompt in other]
    assert shuffled[:7] == first
    assert [prompt.id for prompt in shuffled] == list(range(40))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    task = jsonl(tmp_path, ["\ufeff" + json.dumps(SUMS[0]), json.dumps(SUMS[1])])
    assert [problem.question for problem in scan(task).problems] == [SUMS[0]["question"], SUMS[1]["question"]]


def test_a_packed_file_is_said_to_be_one(tmp_path: Path) -> None:
    task = jsonl(tmp_path, [])
    Path(task.path).write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(TaskError, match="packed by gzip: unpack it"):
        scan(task)
