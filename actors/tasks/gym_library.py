"""The one door to the `reasoning-gym` library.

`import reasoning_gym` imports all of its hundred datasets, sympy and matplotlib: 0.9 s. A run needs one or two of them,
and a dataset's own module imports in 0.05 s if the packages above it are not executed: they are stood in for meanwhile.
"""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import ReasoningGym

LIBRARY = "reasoning_gym"
COMPOSITE = "composite"  # the library's own mixture of datasets


def create_dataset(settings: ReasoningGym) -> Any:
    """The library's dataset these settings describe.

    Raises:
        TaskError: the library is missing, or doesn't know the dataset or one of its parameters, or refuses a value.
    """
    if settings.dataset == COMPOSITE:
        raise TaskError(
            f"reasoning_gym's {COMPOSITE!r} is a mixture of other datasets: name each of them as a task of its own, "
            "with its weight"
        )
    dataset_class, config_class = _classes(settings.dataset)
    known = sorted(field.name for field in fields(config_class) if field.name not in ("seed", "size"))
    for name in settings.parameters:
        if name not in known:
            raise TaskError(
                f"reasoning_gym dataset {settings.dataset!r} has no parameter {name!r}"
                f"{_nearest(name, known)}; it has: {', '.join(known)}"
            )
    try:
        config = config_class(**settings.parameters, seed=settings.seed, size=settings.size)
        return dataset_class(config)
    except (AssertionError, TypeError, ValueError) as error:
        raise TaskError(
            f"reasoning_gym dataset {settings.dataset!r} refuses the parameters {settings.parameters}: "
            f"{error or type(error).__name__}"
        ) from error


def _classes(name: str) -> tuple[Any, Any]:
    """The dataset's class and its configuration's, from the library's own register."""
    if LIBRARY not in sys.modules:
        _import_alone(name)
    factory = sys.modules.get(f"{LIBRARY}.factory")
    if factory is None or name not in factory.DATASETS:
        factory = _whole_library()
    if name not in factory.DATASETS:
        names = sorted(factory.DATASETS)
        raise TaskError(f"reasoning_gym has no dataset {name!r}{_nearest(name, names)}; it has {len(names)}")
    dataset_class, config_class = factory.DATASETS[name]
    return dataset_class, config_class


def _whole_library() -> ModuleType:
    try:
        importlib.import_module(LIBRARY)
        return importlib.import_module(f"{LIBRARY}.factory")
    except ImportError as error:
        raise TaskError(f"the library reasoning-gym can't be imported ({error}): pip install reasoning-gym") from error


def _import_alone(name: str) -> None:
    """Imports the module `reasoning_gym/*/NAME.py` and no other dataset; does nothing where there is none."""
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None or not spec.submodule_search_locations:
        return
    root = Path(spec.submodule_search_locations[0])
    for file in root.glob("*/*.py"):
        if file.stem == name:
            package = f"{LIBRARY}.{file.parent.name}"
            with _stand_ins({LIBRARY: root, package: file.parent}):
                try:
                    importlib.import_module(f"{package}.{name}")
                except ImportError:
                    return  # it needs what its package's __init__ does: the whole library is imported instead
            return


@contextmanager
def _stand_ins(packages: dict[str, Path]) -> Iterator[None]:
    """Empty modules in place of packages; taken away again, so that a later import gets the real ones."""
    for name, folder in packages.items():
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(one) for one in close)}?)" if close else ""
