"""What is said of tasks before a run: by their settings alone, and after reading them."""

from pathlib import Path

import pytest

from entrostat.config import effective_toml, load
from entrostat.explain import explain
from entrostat.protocol.errors import ConfigError
from entrostat.protocol.task_settings import HuggingFace, Parquet
from tests.made_tables import jsonl, parquet, saved

HEAD = """\
[run]
steps = 2
[model]
path = "./model"
[batch]
prompts = 2
[entropy.law]
kind = "fixed"
coefficient = 0
"""
ROWS = [{"question": f"{number}?", "answer": "1"} for number in range(100)]


def config(folder: Path, *tasks: str) -> Path:
    """A TOML beside its data."""
    file = folder / "run.toml"
    file.write_text("\n".join([HEAD, *(f"[[tasks]]\n{task}" for task in tasks)]))
    return file


def refused(folder: Path, *tasks: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config(folder, *tasks))
    return str(caught.value)


def told(folder: Path, *tasks: str) -> str:
    return " ".join(explain(load(config(folder, *tasks))).split())


# ── settings alone ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_paths_are_seen_from_the_file_and_a_hub_name_stays(tmp_path: Path) -> None:
    saved(tmp_path / "data/sums", ROWS)
    parquet(tmp_path / "data", ROWS, "p.parquet")
    tasks = load(
        config(
            tmp_path,
            'kind = "parquet"\npath = "data/p.parquet"',
            'kind = "huggingface"\ndataset = "data/sums"',
            'kind = "huggingface"\ndataset = "openai/gsm8k"\nsubset = "main"',
            'kind = "huggingface"\ndataset = "./nowhere"',
        )
    ).tasks
    assert isinstance(tasks[0], Parquet)
    assert tasks[0].path == str(tmp_path / "data/p.parquet")
    named = [task.dataset for task in tasks[1:] if isinstance(task, HuggingFace)]
    assert named == [str(tmp_path / "data/sums"), "openai/gsm8k", str(tmp_path / "nowhere")]


def test_every_setting_of_a_task_survives_the_effective_configuration(tmp_path: Path) -> None:
    file = config(
        tmp_path,
        'kind = "parquet"\npath = "p.parquet"\nid = "key"\npart = "train"\nshuffle = true\nbad_rows = "skip"\n'
        "chat = true\nchat_options = { enable_thinking = false }\n"
        'few_shot = [{ question = "a\\"", answer = "b" }]\nname = "p"',
        'kind = "reasoning_gym"\ndataset = "chain_sum"\nsize = 4\n[[tasks.few_shot]]\nquestion = "c"\nanswer = "d"',
    )
    whole = load(file)
    assert [len(task.few_shot) for task in whole.tasks] == [1, 1]
    (tmp_path / "effective.toml").write_text(effective_toml(whole))
    assert load(tmp_path / "effective.toml").tasks == whole.tasks


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ('kind = "jsonl"\npath = "a.parquet"', 'a.parquet is a Parquet file: set kind = "parquet"'),
        ('kind = "parquet"\npath = "a.jsonl"', 'a.jsonl is a JSONL file: set kind = "jsonl"'),
        ('kind = "jsonl"\npath = "a.csv"', 'set kind = "huggingface", dataset = the folder'),
        ('kind = "jsonl"\npath = "a.jsonl.gz"', "is packed: unpack it"),
        ('kind = "huggingface"\ndataset = "run.toml"', 'is a file: set kind = "jsonl" or "parquet"'),
        ('kind = "jsonl"\npath = "a"\nchat_options = { thinking = false }', "set chat = true, or leave them out"),
        ('kind = "jsonl"\npath = "a"\npart = "test"\ntest_share = 0', "[tasks 1] test_share = 0 holds nothing out"),
        (
            'kind = "jsonl"\npath = "a"\nverifier = { kind = "reasoning_gym" }',
            "scores what the library generated, and this task reads a table",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, task: str, said: str) -> None:
    assert said in refused(tmp_path, task)


def test_parts_of_one_table_are_cut_in_one_way(tmp_path: Path) -> None:
    table = 'kind = "jsonl"\npath = "a.jsonl"\n'
    said = refused(tmp_path, f'{table}part = "train"', f'{table}part = "test"\nseed = 1')
    assert "[tasks 2] seed = 1, but another task cuts its part from the same table with seed = 0" in said
    load(config(tmp_path, f'{table}part = "train"\nseed = 1', f'{table}part = "test"\nseed = 1'))


def test_more_prompts_a_step_than_a_parquet_file_holds_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path, ROWS[:1], "p.parquet")
    assert "the tasks hold 1: lower it" in refused(tmp_path, 'kind = "parquet"\npath = "p.parquet"')


# ── after reading ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_table_is_explained_with_its_part_order_and_examples(tmp_path: Path) -> None:
    parquet(tmp_path, ROWS, "p.parquet")
    said = told(
        tmp_path,
        'kind = "parquet"\npath = "p.parquet"\npart = "train"\nshuffle = true\nseed = 3\nlimit = 50\nchat = true\n'
        'chat_options = { enable_thinking = false }\nfew_shot = [{ question = "a", answer = "b" }]',
    )
    assert "p.parquet: 50 problems without the 10% of the questions that seed 3 holds out shuffled by seed 3" in said
    assert "at most 50 of them, the first after shuffling" in said
    assert "in the tokenizer's chat template with enable_thinking = False after 1 solved example, as turns" in said
    assert "together 50 prompts" in said


def test_bad_rows_are_explained(tmp_path: Path) -> None:
    jsonl(tmp_path, [*ROWS, "{"], "p.jsonl")
    task = 'kind = "jsonl"\npath = "p.jsonl"\n'
    refusal = told(tmp_path, task)
    assert "100 problems; 1 of 101 rows can't be used (a run is refused), the first: p.jsonl:101: not JSON" in refusal
    assert "a run would end at once, with exit code 2: " in refusal
    skipped = told(tmp_path, f'{task}bad_rows = "skip"')
    assert "1 of 101 rows can't be used (left out)" in skipped
    assert "exit code 2" not in skipped


def test_a_hub_s_dataset_is_not_fetched_to_be_explained(tmp_path: Path) -> None:
    said = told(tmp_path, 'kind = "huggingface"\ndataset = "nobody/nothing"')
    assert "nobody/nothing, split train: of the Hugging Face hub, read when a run begins" in said
    assert "together not known" in said


@pytest.mark.parametrize(
    ("verifier", "said"),
    [
        ("", "by math-verify, in"),
        ('verifier = { kind = "numeric" }', "by the last number, in"),
        ('verifier = { kind = "code" }', "by a program's tests, in"),
        ('verifier = { kind = "custom", function = "mine:judge" }', "by mine:judge, in"),
        (
            'verifier = { kind = "weighted", parts = [ { weight = 0.8, verifier = { kind = "exact" } }, '
            '{ weight = 0.2, verifier = { kind = "format" } } ] }',
            "by 0.8 × the same text + 0.2 × the form think, answer, in",
        ),
    ],
)
def test_each_verifier_is_explained(tmp_path: Path, verifier: str, said: str) -> None:
    jsonl(tmp_path, ROWS, "p.jsonl")
    assert said in told(tmp_path, f'kind = "jsonl"\npath = "p.jsonl"\n{verifier}')


def test_a_task_that_has_too_few_prompts_for_its_share_is_told(tmp_path: Path) -> None:
    jsonl(tmp_path, ROWS, "p.jsonl")
    jsonl(tmp_path, ROWS[:3], "few.jsonl")
    tables = ['kind = "jsonl"\npath = "p.jsonl"\nweight = 1', 'kind = "jsonl"\npath = "few.jsonl"\nweight = {}']
    many = told(tmp_path, tables[0], tables[1].format(1))
    assert "task 2 has 3 prompts for a share of 50.0% of 32 groups in flight" in many
    assert "groups in flight: a prompt" not in told(tmp_path, tables[0], tables[1].format(0.1))


def test_what_a_run_would_not_find_is_explained(tmp_path: Path) -> None:
    said = told(
        tmp_path,
        'kind = "huggingface"\ndataset = "./nowhere"\nweight = 1',
        'kind = "reasoning_gym"\ndataset = "chain_sun"\nsize = 4\nweight = 1',
    )
    assert f"exit code 2: there is no folder {tmp_path / 'nowhere'}" in said
    assert "of the Hugging Face hub" not in said
    assert "exit code 2: reasoning_gym has no dataset 'chain_sun' (did you mean 'chain_sum'" in said


def test_a_task_that_can_not_be_read_has_no_share_to_speak_of(tmp_path: Path) -> None:
    jsonl(tmp_path, ROWS, "p.jsonl")
    jsonl(tmp_path, ["{"], "bad.jsonl")
    tables = [f'kind = "jsonl"\npath = "{name}.jsonl"\nweight = 1' for name in ("p", "bad")]
    assert "groups in flight: a prompt" not in told(tmp_path, *tables)
