"""Files written whole or not at all: a scratch file beside the target, synced, then renamed over it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from energy_lens.errors import ElwError, UsageError


def is_special(output: Path) -> bool:
    """Something that is written to but never replaced: a device or a pipe."""
    return os.path.exists(output) and not os.path.isfile(output) and not os.path.isdir(output)


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A new file beside `output` that takes its place when all went well; else it is removed and the old one stays,
    as it does when the new file is gone by then.

    Raises UsageError when nothing can be written there.
    """
    target = Path(os.path.realpath(output))  # through a link to the file that it names
    if os.path.isdir(target):
        raise UsageError(f"{output} is a folder: name a file with --output.")
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        scratch.unlink(missing_ok=True)
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error.strerror}): name another file with --output.") from error
    try:
        yield scratch
        if not scratch.exists():
            return
        try:
            if target.exists():
                scratch.chmod(stat.S_IMODE(target.stat().st_mode))
            os.replace(scratch, target)
        except OSError as error:
            raise ElwError(f"{output} cannot be replaced ({error.strerror}): name another file.") from error
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """A file to write text to, as UTF-8; a full disk is a sentence."""
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield stream
    except OSError as error:
        raise ElwError(
            f"{path.parent} cannot take the output ({error.strerror}): make room or choose another."
        ) from error
