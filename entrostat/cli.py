"""The command line: one function per command, errors as sentences, exit codes as DESIGN says.

0 done · 1 failed · 2 bad input · 3 stalled · 130 interrupted and saved
"""

import argparse
import io
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from entrostat import __version__
from entrostat.protocol.errors import EntrostatError, RunDirectoryError

log = logging.getLogger(__name__)

EPILOG = """\
A first run:           entrostat train deploy/runs/quickstart.toml
The same, other rate:  entrostat train deploy/runs/quickstart.toml --run runs/slow --set learner.lr=3e-5
Go on after a stop:    entrostat train --resume runs/quickstart
What a file would do:  entrostat explain deploy/runs/quickstart.toml
For another policy:    entrostat calibrate deploy/runs/quickstart.toml
Try a verifier first:  entrostat verify answers.jsonl --verifier math
More rollout actors:   entrostat scale runs/quickstart --actors 4
"""


EVAL_EPILOG = """\
A run's newest checkpoint:  entrostat eval runs/quickstart --samples 16
A model on a file:          entrostat eval Qwen/Qwen3-0.6B --task gsm8k_test.jsonl --set "task.answer_after='####'"
                            --set task.chat=true --samples 16 --k 1,4,16 --out responses.jsonl
What every --task has:      --set task.KEY=VALUE, as in a TOML's [[evaluation.tasks]] (task.verifier.kind=numeric)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without H̃ must not end a run
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.command(chosen))
    except EntrostatError as error:
        print(f"entrostat: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename:
            print(f"entrostat: {error.filename}: {error.strerror}: expected to be able to use it", file=sys.stderr)
            return 2
        log.exception("the command failed")  # where, for the run's log
        print(f"entrostat: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "; a checkpoint that was there stays" if chosen.command in (_train, _calibrate) else ""
        print(f"entrostat: stopped at once{kept}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entrostat",
        description="Reinforcement learning from verified rewards that holds the policy's entropy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"entrostat {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train a policy, or go on with a run")
    train.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="a TOML file, such as deploy/runs/quickstart.toml"
    )
    train.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on with the run in DIR from its newest checkpoint"
    )
    train.add_argument(
        "--run", type=Path, metavar="DIR", help="where the run goes; default: runs/NAME, NAME from the TOML"
    )
    train.add_argument("--keep-earlier", action="store_true", help="where that run exists, keep it under another name")
    train.add_argument("--address", default="local", metavar="ADDRESS", help="a Ray cluster; default: start one here")
    _set_option(train)
    train.set_defaults(command=_train)

    calibrate = commands.add_parser("calibrate", help="propose target, balance, drift and box by two short runs")
    calibrate.add_argument("config", type=Path, metavar="CONFIG")
    calibrate.add_argument(
        "--steps", type=int, metavar="N", help="of the run without control; default: 30, after the warm-up of lr"
    )
    calibrate.add_argument(
        "--confirm-steps",
        type=int,
        metavar="N",
        help="of the run at what was found; default: 20, after the warm-up of lr; 0: none",
    )
    calibrate.add_argument(
        "--write", type=Path, metavar="FILE", help="where the proposal goes; default: the screen, and proposal.toml"
    )
    calibrate.add_argument(
        "--run", type=Path, metavar="DIR", help="where both runs go; default: runs/NAME-calibration, NAME from the TOML"
    )
    calibrate.add_argument(
        "--keep-earlier", action="store_true", help="where that calibration exists, keep it under another name"
    )
    calibrate.add_argument(
        "--address", default="local", metavar="ADDRESS", help="a Ray cluster; default: start one here"
    )
    _set_option(calibrate)
    calibrate.set_defaults(command=_calibrate)

    evaluate = commands.add_parser(
        "eval",
        help="score a model, or a run's newest checkpoint, on fixed unseen prompts",
        epilog=EVAL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument(
        "model", metavar="MODEL", help="a model's folder, a hub name, a run directory, or one of its checkpoints"
    )
    evaluate.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="SPEC",
        dest="tasks",
        help="FILE.jsonl, FILE.parquet, reasoning_gym:DATASET, huggingface:NAME or huggingface:NAME:SPLIT (default: "
        "test); more than once for several; default: [[evaluation.tasks]] of the TOML",
    )
    evaluate.add_argument(
        "--config", type=Path, metavar="CONFIG", help="the TOML with [evaluation]; default: the run's own"
    )
    evaluate.add_argument("--samples", type=int, metavar="N", help="samples per prompt; default: evaluation.samples")
    evaluate.add_argument(
        "--k", type=_tries, metavar="K,K…", help="of pass@k and maj@k; default: evaluation.k, or the powers of two"
    )
    evaluate.add_argument("--temperature", type=float, metavar="T", help="default: evaluation.temperature")
    evaluate.add_argument(
        "--max-tokens", type=int, metavar="N", help="of a response; default: rollout.max_response_tokens"
    )
    evaluate.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N prompts of each task")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    evaluate.add_argument(
        "--out", type=Path, metavar="FILE", help="write each response with its verdict, a line of JSON each"
    )
    _set_option(evaluate)
    evaluate.set_defaults(command=_eval)

    verify = commands.add_parser("verify", help="judge texts in a file, as a run would: how to check a verifier")
    verify.add_argument("file", type=Path, metavar="FILE", help="JSONL: one object a line; - is the standard input")
    verify.add_argument(
        "--verifier",
        metavar="NAME",
        help="math, numeric, exact, choice, format, code, or your own as module:function",
    )
    verify.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="ROLE=KEY",
        help="answer=KEY and response=KEY: where a line has them; dots lead into objects inside",
    )
    verify.add_argument("--answer-after", metavar="MARK", help="the answer follows this mark, as #### in GSM8K")
    verify.add_argument("--config", type=Path, metavar="RUN.toml", help="judge as this run's task does")
    verify.add_argument("--task", type=int, default=0, metavar="N", help="which of its tasks, from 0; default: 0")
    verify.add_argument("--processes", type=_count, metavar="N", help="default: one per CPU, at most 8; or the run's")
    verify.add_argument(
        "--deadline", type=_some_seconds, metavar="SECONDS", help="for one line; default: 10, or the run's"
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object per line of the file, in its order")
    _set_option(verify)
    verify.set_defaults(command=_verify)

    explain = commands.add_parser("explain", help="say in words and numbers what a TOML would do, without doing it")
    explain.add_argument("config", type=Path, metavar="CONFIG")
    _set_option(explain)
    explain.set_defaults(command=_explain)

    scale = commands.add_parser("scale", help="give a living run more rollout actors, or fewer")
    scale.add_argument("run", type=Path, metavar="RUN")
    scale.add_argument("--actors", type=int, required=True, metavar="N", help="how many there shall be")
    scale.add_argument(
        "--wait", type=_seconds, metavar="SECONDS", help="return when so many are up, or fail after so long"
    )
    scale.set_defaults(command=_scale)

    samples = commands.add_parser("samples", help="read what the policy wrote: prompt, response, verdict, entropy")
    samples.add_argument("run", type=Path, metavar="RUN")
    samples.add_argument("--step", type=int, metavar="N", help="of that optimizer step; default: the newest")
    samples.add_argument("--status", choices=("correct", "wrong", "unparsable", "timeout", "error"), help="only these")
    samples.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many; default: 20")
    samples.set_defaults(command=_samples)

    report = commands.add_parser("report", help="draw a run's report again, also while it runs")
    report.add_argument("run", type=Path, metavar="RUN")
    report.set_defaults(command=_report)

    replay = commands.add_parser("replay", help="apply a run's journal again, and hold it against what was recorded")
    replay.add_argument("run", type=Path, metavar="RUN")
    replay.add_argument("--to-step", type=int, metavar="N", help="show the controller's state at that step")
    replay.add_argument("--json", action="store_true", help="print JSON instead of tables")
    replay.set_defaults(command=_replay)

    compare = commands.add_parser("compare", help="draw reward and entropy of several runs in one picture")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    compare.add_argument(
        "--picture", type=Path, default=Path("comparison.png"), metavar="FILE", help="default: %(default)s"
    )
    compare.set_defaults(command=_compare)

    doctor = commands.add_parser("doctor", help="look at this machine: what is right, what is wrong, what to do")
    doctor.set_defaults(command=_doctor)
    return parser


def _tries(text: str) -> tuple[int, ...]:
    tried = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if min(tried) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers of tries from 1 on, as in --k 1,4,16")
    return tried


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of seconds from 0 on")
    return seconds


def _some_seconds(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0 seconds")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1 on")
    return count


def _set_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key: --set learner.lr=1e-4",
    )


# Each command imports what it needs: `entrostat --help` must not wait for torch.


def _train(chosen: argparse.Namespace) -> int:
    began = _command_given()
    from entrostat import job

    if (chosen.config is None) == (chosen.resume is None):
        raise RunDirectoryError(
            "train takes either a CONFIG or --resume DIR: entrostat train deploy/runs/quickstart.toml"
        )
    if chosen.resume is not None:
        if chosen.run is not None or chosen.keep_earlier:
            raise RunDirectoryError("--resume goes on in its own directory: leave out --run and --keep-earlier")
        return job.resume(chosen.resume, chosen.overrides, address=chosen.address, began=began)
    return job.begin(
        chosen.config,
        chosen.overrides,
        run=chosen.run,
        keep_earlier=chosen.keep_earlier,
        address=chosen.address,
        began=began,
    )


def _calibrate(chosen: argparse.Namespace) -> int:
    began = _command_given()
    from entrostat import calibrate

    return calibrate.begin(
        chosen.config,
        chosen.overrides,
        run=chosen.run,
        keep_earlier=chosen.keep_earlier,
        address=chosen.address,
        steps=chosen.steps,
        confirm_steps=chosen.confirm_steps,
        write=chosen.write,
        began=began,
    )


def _eval(chosen: argparse.Namespace) -> int:
    from entrostat import evaluate
    from entrostat.evaluation_job import Asked

    asked = Asked(
        model=chosen.model,
        config=chosen.config,
        tasks=tuple(chosen.tasks),
        overrides=tuple(chosen.overrides),
        samples=chosen.samples,
        k=chosen.k,
        temperature=chosen.temperature,
        max_tokens=chosen.max_tokens,
        limit=chosen.limit,
    )
    return evaluate.run(asked, as_json=chosen.json, out=chosen.out)


def _verify(chosen: argparse.Namespace) -> int:
    from entrostat import verify

    options = verify.Options(
        file=chosen.file,
        verifier=chosen.verifier,
        fields=chosen.field,
        overrides=chosen.overrides,
        config=chosen.config,
        task=chosen.task,
        answer_after=chosen.answer_after,
        processes=chosen.processes,
        deadline_seconds=chosen.deadline,
        as_json=chosen.json,
    )
    return verify.run(options)


def _explain(chosen: argparse.Namespace) -> int:
    from entrostat import config, explain

    print(explain.explain(config.load(chosen.config, chosen.overrides, to_run=True)))
    return 0


def _scale(chosen: argparse.Namespace) -> int:
    from entrostat import scale

    return scale.run(chosen.run, chosen.actors, wait=chosen.wait)


def _samples(chosen: argparse.Namespace) -> int:
    from rich.console import Console

    from entrostat import samples

    step, records = samples.read(chosen.run, chosen.step)
    found = len(records)
    records = [record for record in records if chosen.status in (None, record.status)]
    if not records:
        print(f"none of the {found} samples written down of step {step} is {chosen.status}: name another --step")
        return 0
    samples.show(Console(), step, records[: chosen.limit])
    return 0


def _report(chosen: argparse.Namespace) -> int:
    from entrostat import report

    _check_runs([chosen.run])
    print(report.write_report(chosen.run))
    return 0


def _replay(chosen: argparse.Namespace) -> int:
    from rich.console import Console

    from entrostat import replay

    return replay.run(chosen.run, to_step=chosen.to_step, as_json=chosen.json, console=Console())


def _compare(chosen: argparse.Namespace) -> int:
    from entrostat import report

    _check_runs(chosen.runs)
    report.write_comparison(chosen.runs, chosen.picture)
    print(chosen.picture)
    return 0


def _check_runs(runs: Sequence[Path]) -> None:
    for run in runs:
        metrics = run / "metrics.jsonl"
        if not metrics.is_file() or not metrics.stat().st_size:
            raise RunDirectoryError(f"{run} has no metrics.jsonl: expected a run directory with at least one step")


def _doctor(chosen: argparse.Namespace) -> int:
    from entrostat import doctor

    del chosen
    return doctor.run()


def _command_given() -> float:
    """When this process was started, Unix time: imports count as the user's waiting."""
    import psutil

    return min(psutil.Process().create_time(), time.time())
