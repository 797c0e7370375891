"""Where problems come from, and which verifier judges the responses to them: one Struct per kind of task."""

from typing import Annotated, Literal

from msgspec import Meta, field

from entrostat.protocol.ranges import CountOrZero, NonNegative, OpenShare, Settings
from entrostat.protocol.verifier_settings import AnyVerifier, GymScorer, Math


class Example(Settings, frozen=True, kw_only=True):
    """A solved problem that the policy reads before its own."""

    question: str
    answer: str  # as the policy shall write it


class _Task(Settings, frozen=True, kw_only=True):
    """What every kind of task has."""

    level: str = ""  # see each kind
    template: str = "{question}"
    system: str = ""
    chat: bool = False  # format with the tokenizer's chat template
    chat_options: dict[str, bool | int | str] = field(default_factory=dict)  # the template's, as enable_thinking
    few_shot: tuple[Example, ...] = ()  # solved before the question
    weight: NonNegative = 0.0  # its share of the prompts' turns is in proportion; all 0: every prompt once an epoch
    seed: CountOrZero = 0


class ReasoningGym(_Task, frozen=True, kw_only=True, tag_field="kind", tag="reasoning_gym"):
    """Generated problems of the `reasoning-gym` library; `level` is a name for them, by default the dataset's.

    The library's own scorer reads the answer from the last `<answer>…</answer>` of the response.
    """

    dataset: str
    size: Annotated[int, Meta(ge=1, le=10_000_000)]
    parameters: dict[str, int | float | str | bool | list[int | float | str]] = field(default_factory=dict)
    verifier: AnyVerifier = GymScorer()


class _Rows(_Task, frozen=True, kw_only=True):
    """What every kind of table has: fields by their names, those inside others with dots. `level` is a field's name.

    A field inside another is `reward_model.ground_truth`, one in a list `choices.0`. A question is text, or a list of
    chat messages of which the user's last is asked, after those before it. An answer is text, a number, or a list or
    an object, which the verifier gets as JSON.
    """

    question: str = "question"
    answer: str = "answer"
    answer_after: str = ""  # the answer is what follows the last occurrence of this mark, as "####" in GSM8K
    id: str = ""  # a field's name, other in each row; default: problems are called by their place
    name: str = ""  # what their names begin with; default: the file's name
    bad_rows: Literal["refuse", "skip"] = "refuse"  # rows without a usable question or answer, or too long
    part: Literal["all", "train", "test"] = "all"  # `test_share` of the questions are held out, by `seed`
    test_share: OpenShare = 0.1
    shuffle: bool = False  # by `seed`, before `limit`
    limit: CountOrZero = 0  # use the first so many problems; 0 uses all
    verifier: AnyVerifier = Math()


class Jsonl(_Rows, frozen=True, kw_only=True, tag_field="kind", tag="jsonl"):
    """A file with one problem a line."""

    path: str


class Parquet(_Rows, frozen=True, kw_only=True, tag_field="kind", tag="parquet"):
    """A Parquet file with one problem a row."""

    path: str


class HuggingFace(_Rows, frozen=True, kw_only=True, tag_field="kind", tag="huggingface"):
    """A dataset of the `datasets` library: a hub name, or a local folder."""

    dataset: str
    subset: str = ""  # its configuration, where it has several
    split: str = "train"
    revision: str = ""


RowSettings = Jsonl | Parquet | HuggingFace
TaskSettings = ReasoningGym | RowSettings
