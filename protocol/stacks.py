"""What each thread of this process does just now."""

import os
import platform
import sys
import threading
import traceback
from types import FrameType

from entrostat.protocol.messages import Stacks


def stacks() -> Stacks:
    """This process, and the stack of each of its threads, the newest call last; the asking one is among them."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # documented, under this very name
    texts = [_text(names.get(ident, f"thread {ident}"), frame) for ident, frame in frames.items()]
    return Stacks(host=platform.node(), process=os.getpid(), text="\n".join(sorted(texts)))


def _text(name: str, frame: FrameType) -> str:
    return f"{name}\n{''.join(traceback.format_stack(frame))}"
