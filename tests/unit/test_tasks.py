import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.actors.tasks.entries import decode_entry, encode_entry
from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tasks.problem import Turn
from entrostat.actors.verifiers.reasoning_gym import ReasoningGymVerifier
from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import Jsonl, ReasoningGym


class Words:
    """A tokenizer with one token a word."""

    def encode(self, text: str) -> Int32:
        return np.arange(len(text.split()), dtype=np.int32)

    def decode(self, tokens: Int32) -> str:
        return " ".join(str(token) for token in tokens)


def sums(terms: int, size: int, seed: int = 0) -> ReasoningGym:
    parameters: dict[str, int | float | str | bool | list[int | float | str]] = {
        "min_terms": terms,
        "max_terms": terms,
        "max_digits": 2,
    }
    return ReasoningGym(dataset="chain_sum", size=size, seed=seed, level=f"{terms} terms", parameters=parameters)


def brackets(system: str, turns: Sequence[Turn], question: str, options: Mapping[str, bool | int | str]) -> str:
    """A chat template."""
    said = [Turn("user", question)]
    spoken = "".join(f"<{turn.role}: {turn.text}>" for turn in [*turns, *said])
    return f"{f'<system: {system}>' if system else ''}{spoken}{''.join(f'{k}={v}' for k, v in options.items())}"


def rows(folder: Path, *lines: str) -> Jsonl:
    file = folder / "problems.jsonl"
    file.write_text("\n".join(lines))
    return Jsonl(path=str(file))


# ── ids, names, levels ───────────────────────────────────────────────────────────────────────────────────────────────


def test_ids_are_dense_and_name_their_task_and_level() -> None:
    prompts = load_prompts([sums(3, 5), sums(4, 3)], first_task=2).prompts
    assert [prompt.id for prompt in prompts] == list(range(8))
    assert [prompt.task for prompt in prompts] == [2] * 5 + [3] * 3
    assert [prompt.level for prompt in prompts] == ["3 terms"] * 5 + ["4 terms"] * 3
    assert len({prompt.name for prompt in prompts}) == 8


def test_the_same_settings_give_the_same_prompts() -> None:
    assert load_prompts([sums(3, 20)]) == load_prompts([sums(3, 20)])


def test_a_generated_prompt_carries_its_own_answer() -> None:
    for prompt in load_prompts([sums(4, 20)]).prompts:
        expression = prompt.text.split(": ")[1].removesuffix(" =")
        assert eval(expression) == int(prompt.answer)  # an oracle: Python's own arithmetic
        assert decode_entry(prompt.entry)["answer"] == prompt.answer


def test_no_question_is_asked_twice() -> None:
    texts = [prompt.text for prompt in load_prompts([sums(2, 400)]).prompts]
    assert len(set(texts)) == 400


def test_evaluation_sees_no_question_of_training() -> None:
    training = [sums(2, 300)]
    seen = {prompt.text for prompt in load_prompts(training).prompts}
    alone = {prompt.text for prompt in load_prompts([sums(2, 50, seed=100)]).prompts}
    unseen = {prompt.text for prompt in load_prompts([sums(2, 50, seed=100)], 1, unlike=training).prompts}
    assert alone & seen  # the seeds overlap, so there is something to leave out
    assert len(unseen) == 50
    assert not unseen & seen


def test_problems_of_a_file_that_are_in_training_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = rows(tmp_path, '{"question": "a  1", "answer": "1"}')
    (tmp_path / "other").mkdir()
    other = rows(tmp_path / "other", '{"question": "a 1", "answer": "1"}', '{"question": "b", "answer": "2"}')
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts([other], unlike=[training]).prompts
    assert [prompt.text for prompt in prompts] == ["b"]
    assert "1 problems are in training too" in caplog.text


# ── what the policy reads ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_template_may_be_full_of_braces(tmp_path: Path) -> None:
    task = Jsonl(path=rows(tmp_path, '{"question": "1+1?", "answer": "2"}').path, template="{question} Use \\boxed{}.")
    assert load_prompts([task]).prompts[0].text == "1+1? Use \\boxed{}."


def test_the_chat_template_gets_system_and_question(tmp_path: Path) -> None:
    path = rows(tmp_path, '{"question": "1+1?", "answer": "2"}').path
    task = Jsonl(path=path, system="Be brief.", template="Q: {question}", chat=True)
    prompts = load_prompts([task], chat=brackets).prompts
    assert prompts[0].text == "<system: Be brief.><user: Q: 1+1?>"


def test_a_missing_chat_template_is_said(tmp_path: Path) -> None:
    path = rows(tmp_path, '{"question": "1+1?", "answer": "2"}').path
    with pytest.raises(TaskError, match="no chat template: set chat = false"):
        load_prompts([Jsonl(path=path, chat=True)])


@pytest.mark.parametrize("context_tokens", [None, 9])
def test_a_prompt_without_tokens_is_refused_by_name(tmp_path: Path, context_tokens: int | None) -> None:
    class Letters(Words):
        def encode(self, text: str) -> Int32:
            return super().encode("".join(letter for letter in text if letter.isascii()))

    task = rows(tmp_path, '{"question": "a", "answer": "1"}', '{"question": "π", "answer": "2"}')
    with pytest.raises(TaskError, match=r"1 of 2 prompts have no tokens: .*problems\.jsonl:2; .* template or system"):
        load_prompts([task], tokenizer=Letters(), context_tokens=context_tokens)


def test_a_prompt_as_long_as_the_context_is_refused_by_name_and_length(tmp_path: Path) -> None:
    task = rows(tmp_path, '{"question": "a b", "answer": "1"}', '{"question": "a b c d", "answer": "1"}')
    load_prompts([task], tokenizer=Words(), context_tokens=5)
    with pytest.raises(TaskError, match=r"1 of 2 prompts .*context of 4 tokens.*problems\.jsonl:2 \(4 tokens\)"):
        load_prompts([task], tokenizer=Words(), context_tokens=4)


def test_prompts_without_room_are_left_out_where_bad_rows_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = rows(
        tmp_path, *(f'{{"question": "{question}", "answer": "1"}}' for question in ("a b c d", "a", "b b"))
    ).path
    task = Jsonl(path=path, bad_rows="skip")
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts([task], first_task=3, tokenizer=Words(), context_tokens=4).prompts
    assert [(prompt.id, prompt.name) for prompt in prompts] == [(0, "problems.jsonl:2"), (1, "problems.jsonl:3")]
    assert "1 of 3 prompts have no tokens, or no room" in caplog.text
    assert "problems.jsonl:1 (4 tokens)" in caplog.text
    with pytest.raises(TaskError, match=r"all prompts have no tokens, or no room .* in task 3"):
        load_prompts([task], first_task=3, tokenizer=Words(), context_tokens=1)


# ── bad files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_that_is_not_json_is_named_by_file_and_number(tmp_path: Path) -> None:
    task = rows(tmp_path, '{"question": "a", "answer": "1"}', "", "{question: a}")
    with pytest.raises(TaskError, match=r"problems\.jsonl:3: not JSON .*\{question: a\}"):
        load_prompts([task])


def test_a_line_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"problems\.jsonl:1: holds a list"):
        load_prompts([rows(tmp_path, "[1, 2]")])


def test_a_missing_field_is_named_beside_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"problems\.jsonl:1: no field 'answer' .*it has: question, solution"):
        load_prompts([rows(tmp_path, '{"question": "a", "solution": "1"}')])


@pytest.mark.parametrize("answer", ["null", "true", "[]", "{}", '" "'])
def test_what_can_be_no_answer_is_refused(tmp_path: Path, answer: str) -> None:
    with pytest.raises(TaskError, match=r"problems\.jsonl:1: 'answer' is .*expected (text or a number|an answer)"):
        load_prompts([rows(tmp_path, f'{{"question": "a", "answer": {answer}}}')])


def test_an_answer_without_its_mark_is_refused(tmp_path: Path) -> None:
    path = rows(tmp_path, '{"question": "a", "answer": "1"}').path
    with pytest.raises(TaskError, match=r"problems\.jsonl:1: the field 'answer' does not contain the mark '####'"):
        load_prompts([Jsonl(path=path, answer_after="####")])


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_file_is_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(TaskError, match=r"problems\.jsonl is empty"):
        load_prompts([rows(tmp_path, *lines)])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"nowhere\.jsonl can't be read \(No such file or directory\)"):
        load_prompts([Jsonl(path=str(tmp_path / "nowhere.jsonl"))])


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_bytes(b'{"question": "\xff\xfe", "answer": "1"}')
    with pytest.raises(TaskError, match=r"problems\.jsonl:1: not JSON"):
        load_prompts([Jsonl(path=str(file))])


def test_two_tasks_with_the_same_problems_are_refused() -> None:
    with pytest.raises(TaskError, match="two prompts are called 'chain_sum-3-terms-s0/0', of tasks 0 and 1"):
        load_prompts([sums(3, 2), sums(3, 2)])


def test_no_task_at_all_is_refused() -> None:
    with pytest.raises(TaskError, match="at least one"):
        load_prompts([])


# ── bad generated tasks ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"no dataset 'chain_sums' .did you mean 'chain_sum'"):
        load_prompts([ReasoningGym(dataset="chain_sums", size=1)])


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"has no parameter 'min_term' .did you mean 'min_terms'"):
        load_prompts([ReasoningGym(dataset="chain_sum", size=1, parameters={"min_term": 3})])


def test_what_the_library_refuses_is_said_in_its_words() -> None:
    with pytest.raises(TaskError, match="max_terms must be >= min_terms"):
        load_prompts([ReasoningGym(dataset="chain_sum", size=1, parameters={"min_terms": 9})])


def test_a_task_that_runs_out_of_problems_says_so() -> None:
    parameters: dict[str, int | float | str | bool | list[int | float | str]] = {
        "min_terms": 1,
        "max_terms": 1,
        "max_digits": 1,
    }
    with pytest.raises(TaskError, match="only 10 different problems of the 50 asked for"):
        load_prompts([ReasoningGym(dataset="chain_sum", size=50, parameters=parameters)])


# Among them: finite ones, tuples, sets and numpy's numbers in entries, and answers that only a scorer can tell.
# fmt: off
GENERATED = (
    "arc_1d", "basic_arithmetic", "binary_matrix", "bitwise_arithmetic", "calendar_arithmetic",
    "color_cube_rotation", "complex_arithmetic", "countdown", "dice", "family_relationships", "figlet_font",
    "game_of_life", "jugs", "leg_counting", "mahjong_puzzle", "manipulate_matrix", "maze", "mini_sudoku",
    "number_format", "palindrome_generation", "polynomial_equations", "rearc", "rotten_oranges", "self_reference",
    "shortest_path", "simple_equations", "sokoban", "string_insertion", "survo", "time_intervals", "word_ladder",
    "zebra_puzzles",
)
# fmt: on


@pytest.mark.parametrize("dataset", GENERATED)
def test_the_dataset_s_own_answers_are_judged_correct(dataset: str) -> None:
    task = ReasoningGym(dataset=dataset, size=2, seed=5)
    verifier = ReasoningGymVerifier(task)
    for prompt in load_prompts([task]).prompts:
        assert verifier.verify(prompt, f"<answer>{prompt.answer}</answer>").status == "correct"


@pytest.mark.parametrize(
    ("dataset", "solution"),
    [
        ("graph_color", "possible_answer"),
        ("propositional_logic", "example_answer"),
        ("rubiks_cube", "example_correct_answer"),
    ],
)
def test_a_dataset_without_one_answer_is_judged_by_its_scorer(dataset: str, solution: str) -> None:
    task = ReasoningGym(dataset=dataset, size=1)
    [prompt] = load_prompts([task]).prompts
    found = decode_entry(prompt.entry)["metadata"][solution]
    text = found if isinstance(found, str) else json.dumps(found)
    verifier = ReasoningGymVerifier(task)
    assert prompt.answer == ""
    assert verifier.verify(prompt, f"<answer>{text}</answer>").status == "correct"
    assert verifier.verify(prompt, "<answer>None</answer>").status == "wrong"


def test_the_answer_that_was_scored_is_named_so_that_it_can_be_voted_for() -> None:
    task = ReasoningGym(dataset="chain_sum", size=1)
    [prompt] = load_prompts([task]).prompts
    verifier = ReasoningGymVerifier(task)
    right = verifier.verify(prompt, f"<answer>0</answer> or <answer>\n {prompt.answer}  </answer>")
    wrong = verifier.verify(prompt, "I say <answer> none </answer>")
    assert (right.status, right.answer) == ("correct", prompt.answer)
    assert (wrong.status, wrong.answer) == ("wrong", "none")
    assert verifier.verify(prompt, "no tags").answer == ""


def test_a_mixture_of_datasets_is_several_tasks() -> None:
    with pytest.raises(TaskError, match="each of them as a task of its own"):
        load_prompts([ReasoningGym(dataset="composite", size=1)])


# ── entries ──────────────────────────────────────────────────────────────────────────────────────────────────────────

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=4), plain, max_size=3))
def test_an_entry_comes_back_with_its_tuples_and_keys(entry: dict[str, object]) -> None:
    assert decode_entry(encode_entry(entry)) == entry


def test_an_entry_comes_back_with_its_sets_and_without_numpy() -> None:
    entry = {"set": {1, 2}, "number": np.int64(3), "array": np.arange(2), "text": np.str_("a")}
    back = decode_entry(encode_entry(entry))
    assert back == {"set": {1, 2}, "number": 3, "array": [0, 1], "text": "a"}
    assert type(back["text"]) is str


# ── the real thing ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_gsm8k_answers_stand_after_the_mark(test_data: Path) -> None:
    file = test_data / "gsm8k_test.jsonl"
    prompts = load_prompts([Jsonl(path=str(file), answer_after="####", limit=100)]).prompts
    assert len(prompts) == 100
    assert prompts[0].name == "gsm8k_test.jsonl:1"
    first = json.loads(file.read_text().splitlines()[0])
    assert prompts[0].text == first["question"]
    assert prompts[0].answer == first["answer"].split("####")[1].strip() == "18"
