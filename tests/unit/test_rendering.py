"""What the policy reads: conversations, solved examples, chat templates and their options."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tasks.problem import Turn
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import Example, Jsonl, ReasoningGym
from tests.made_tables import Row, jsonl, parquet

# As Qwen's: a system message if there is one, each turn between marks, a thought left out on request.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and message.content == 'no' %}{{ raise_exception('no system here') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}</{{ message.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("policy")
    for file in starter.glob("*token*.json"):
        shutil.copy(file, folder)
    shutil.copy(starter / "config.json", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return HuggingFaceTokenizer(folder)


def plainly(system: str, turns: Sequence[Turn], question: str, options: Mapping[str, bool | int | str]) -> str:
    """A chat template."""
    said = [Turn("user", question)]
    return "|".join([f"system:{system}", *(f"{turn.role}:{turn.text}" for turn in [*turns, *said]), str(dict(options))])


def text(task: Jsonl | ReasoningGym) -> str:
    return load_prompts([task], chat=plainly).prompts[0].text


def asked(*messages: tuple[str, object]) -> list[Row]:
    return [{"prompt": [{"role": role, "content": content} for role, content in messages], "answer": "2"}]


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────

WHOLE = asked(("system", "Be brief."), ("user", "Hello"), ("assistant", "Yes?"), ("user", "1+1?"))


def test_a_question_of_chat_messages_keeps_its_system_text_and_its_turns(tmp_path: Path) -> None:
    task = jsonl(tmp_path, WHOLE, question="prompt", chat=True, template="Q: {question}")
    assert text(task) == "system:Be brief.|user:Hello|assistant:Yes?|user:Q: 1+1?|{}"
    other = parquet(tmp_path, WHOLE, question="prompt", chat=True, template="Q: {question}")
    assert load_prompts([other], chat=plainly).prompts[0].text == text(task)


def test_a_task_s_own_system_text_goes_before_a_row_s(tmp_path: Path) -> None:
    assert text(jsonl(tmp_path, WHOLE, question="prompt", chat=True, system="Think.")).startswith("system:Think.|user")


def test_without_a_chat_template_a_conversation_is_paragraphs(tmp_path: Path) -> None:
    assert text(jsonl(tmp_path, WHOLE, question="prompt")) == "Be brief.\n\nHello\n\nYes?\n\n1+1?"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (asked(), "there is none"),
        (asked(("user", "a"), ("assistant", "b")), "the last is of 'assistant'"),
        (asked(("user", "a"), ("tool", "b"), ("user", "c")), "has a message of 'tool'"),
        (asked(("user", "a"), ("system", "b"), ("user", "c")), "has a message of 'system'"),
        (asked(("user", [{"type": "image"}])), "'prompt.0' is a message without text"),
        ([{"prompt": ["a"], "answer": "2"}], "'prompt.0' is no chat message"),
    ],
)
def test_messages_that_ask_nothing_are_a_bad_row(tmp_path: Path, messages: list[Row], said: str) -> None:
    with pytest.raises(TaskError, match=f"problems.jsonl:1: .*{said}"):
        load_prompts([jsonl(tmp_path, messages, question="prompt")])


def test_evaluation_leaves_out_a_conversation_only_if_all_of_it_was_trained_on(tmp_path: Path) -> None:
    other = asked(("user", "2?"), ("assistant", "Yes?"), ("user", "1+1?"))
    training = jsonl(tmp_path, WHOLE, question="prompt")
    unseen = jsonl(tmp_path / "other", [*other, *WHOLE], question="prompt")
    found = load_prompts([unseen], unlike=[training]).prompts
    assert [prompt.text for prompt in found] == ["2?\n\nYes?\n\n1+1?"]


# ── solved examples ──────────────────────────────────────────────────────────────────────────────────────────────────

EXAMPLES = (Example(question="2+2?", answer="4"), Example(question="3+3?", answer="6"))
ONE: list[Row] = [{"question": "1+1?", "answer": "2"}]


def test_examples_are_turns_of_a_chat_each_in_the_template(tmp_path: Path) -> None:
    task = jsonl(tmp_path, ONE, few_shot=EXAMPLES, chat=True, template="Q: {question}")
    assert text(task) == "system:|user:Q: 2+2?|assistant:4|user:Q: 3+3?|assistant:6|user:Q: 1+1?|{}"


def test_examples_come_before_what_a_row_itself_has(tmp_path: Path) -> None:
    task = jsonl(tmp_path, WHOLE, question="prompt", few_shot=EXAMPLES[:1], chat=True)
    said = text(task)
    assert said == "system:Be brief.|user:2+2?|assistant:4|user:Hello|assistant:Yes?|user:1+1?|{}"


def test_examples_without_a_chat_stand_before_the_question(tmp_path: Path) -> None:
    task = jsonl(tmp_path, ONE, few_shot=EXAMPLES, template="Q: {question}\nA:", system="Add.")
    assert text(task) == "Add.\n\nQ: 2+2?\nA: 4\n\nQ: 3+3?\nA: 6\n\nQ: 1+1?\nA:"
    broken = jsonl(tmp_path, ONE, few_shot=EXAMPLES[:1], template="{question}\n")
    assert text(broken) == "2+2?\n4\n\n1+1?\n"


def test_generated_problems_take_examples_too() -> None:
    assert text(ReasoningGym(dataset="chain_sum", size=1, few_shot=EXAMPLES)).startswith("2+2? 4\n\n3+3? 6\n\nState")


# ── the tokenizer's template ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_chat_template_reads_every_message_and_ends_where_the_response_begins(
    tokenizer: HuggingFaceTokenizer,
) -> None:
    turns = [Turn("user", "2+2?"), Turn("assistant", "4")]
    said = tokenizer.chat("Add.", turns, "1+1?", {})
    assert said == "<system>Add.</system><user>2+2?</user><assistant>4</assistant><user>1+1?</user><assistant>"
    assert tokenizer.chat("", [], "1+1?", {}) == "<user>1+1?</user><assistant>"


def test_an_option_reaches_the_template(tokenizer: HuggingFaceTokenizer, tmp_path: Path) -> None:
    task = jsonl(tmp_path, ONE, chat=True, chat_options={"enable_thinking": False})
    assert load_prompts([task], chat=tokenizer.chat).prompts[0].text == "<user>1+1?</user><assistant><think></think>"


@pytest.mark.parametrize("option", ["enable_thinkin", "tokenize", "add_generation_prompt"])
def test_an_option_the_template_never_mentions_is_refused(tokenizer: HuggingFaceTokenizer, option: str) -> None:
    with pytest.raises(TaskError, match=f"has no option '{option}'"):
        tokenizer.chat("", [], "1+1?", {option: False})


def test_what_a_template_refuses_is_said_in_its_words(tokenizer: HuggingFaceTokenizer) -> None:
    with pytest.raises(TaskError, match=r"refuses messages of system, user \(no system here\)"):
        tokenizer.chat("no", [], "1+1?", {})
