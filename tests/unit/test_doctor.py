from pathlib import Path

import pytest

from entrostat import doctor
from entrostat.actors.verifiers.sandbox import Confinable
from entrostat.doctor import Answer, Check


def says(said: str, succeeded: bool = True) -> doctor.Ask:
    return lambda code: Answer(succeeded=succeeded, said=said)


@pytest.mark.parametrize(
    ("version", "status"), [((3, 11, 0), "right"), ((3, 12, 9), "right"), ((3, 10, 4), "wrong"), ((3, 13, 0), "wrong")]
)
def test_pythons_it_does_not_run_on_are_wrong(version: tuple[int, ...], status: str) -> None:
    check = doctor.check_python(version)
    assert check.status == status
    assert bool(check.advice) == (status == "wrong")


def test_a_library_that_can_be_imported_is_right_by_its_packages_version() -> None:
    check = doctor.check_library("reasoning_gym", says("imported"))
    assert check.status == "right"
    assert check.found.startswith("reasoning-gym 0.")


def test_a_library_that_breaks_at_import_is_wrong_and_says_how() -> None:
    check = doctor.check_library("vllm", says("OSError: libc10_cuda.so: cannot open", succeeded=False))
    assert check.status == "wrong"
    assert "libc10_cuda.so" in check.found
    assert "requirements-cpu.lock" in check.advice


def test_a_torchvision_for_cuda_is_the_trap_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_cuda_builds(says("no", succeeded=False), "2.13.0+cpu") == []
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [check] = doctor.check_cuda_builds(doctor.ask, "2.13.0+cpu")
    assert check.status == "wrong"
    assert "torchvision::nms does not exist" in check.found
    assert check.advice.startswith("pip uninstall torchvision")


def test_too_little_space_is_wrong_and_enough_is_right(tmp_path: Path) -> None:
    assert doctor.check_space("disk", tmp_path, 1, "free some").status == "right"
    check = doctor.check_space("disk", tmp_path, 1 << 60, "free some")
    assert (check.status, check.advice) == ("wrong", "free some")
    assert doctor.check_space("shared memory", tmp_path / "none", 1, "mount it").status == "wrong"


@pytest.mark.parametrize(
    ("mode", "status"), [("token", "right"), ("disabled", "right"), ("tokn", "wrong"), ("", "note")]
)
def test_rays_authentication_is_looked_at(mode: str, status: str) -> None:
    assert doctor.check_ray_authentication({"RAY_AUTH_MODE": mode} if mode else {}).status == status


def test_a_cluster_in_the_environment_is_pointed_out() -> None:
    assert doctor.check_ray_address({}).status == "right"
    assert doctor.check_ray_address({"RAY_ADDRESS": "10.0.0.1:6379"}).found == "10.0.0.1:6379"


def test_devices_are_named() -> None:
    assert doctor.check_devices(says("NVIDIA H100")).found == "NVIDIA H100"
    assert doctor.check_devices(says("no GPU")).status == "note"
    assert doctor.check_devices(says("broken", succeeded=False)).status == "wrong"


def test_a_small_machine_is_noted() -> None:
    assert doctor.check_processors(1, 32 << 30).status == "note"
    assert doctor.check_processors(2, 24 << 30).status == "right"


def test_a_process_that_hangs_or_crashes_is_an_answer_too() -> None:
    assert doctor.ask("print(1); print(2)") == Answer(succeeded=True, said="2")
    assert doctor.ask("import time; time.sleep(9)", seconds=0.2).said == "no answer within 0.2 s"
    assert doctor.ask("import os; os.abort()").succeeded is False
    assert doctor.ask("raise ValueError('why')") == Answer(succeeded=False, said="ValueError: why")


def test_one_wrong_thing_makes_the_exit_code_1_and_notes_do_not() -> None:
    right, note, wrong = (
        Check(name="x", status="right", found=""),
        Check(name="x", status="note", found=""),
        Check(name="x", status="wrong", found=""),
    )
    assert doctor.exit_code([right, note]) == 0
    assert doctor.exit_code([right, wrong]) == 1


def test_advice_in_brackets_is_shown_as_it_is() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, quiet=True)
    with console.capture() as shown:
        console.quiet = False
        console.print(
            doctor.render([Check(name="devices", status="note", found="no GPU", advice="pip install .[gpu]")])
        )
    assert "pip install .[gpu]" in shown.get()


@pytest.mark.parametrize(
    ("failure", "abi", "status", "said"),
    [
        ("", 7, "right", "seccomp, Landlock 7"),
        ("", 2, "note", "seccomp, Landlock 2"),
        ("", 0, "note", "seccomp, no Landlock"),
        ("seccomp: Invalid argument", 0, "note", "can't be confined: seccomp: Invalid argument"),
    ],
)
def test_it_says_whether_programs_can_be_confined(failure: str, abi: int, status: str, said: str) -> None:
    check = doctor.check_confinement(Confinable(failure=failure, landlock_abi=abi))
    assert check.status == status
    assert said in check.found
    assert bool(check.advice) == (status == "note")
