"""Where a process's log goes: a file of its own in the run directory."""

import logging
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to(directory: str | Path, station: str) -> None:
    """Sends what `entrostat` logs from INFO on, and others from WARNING on, to `logs/STATION.log` of the run."""
    folder = Path(directory) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{station}.log")
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("entrostat").setLevel(logging.INFO)
