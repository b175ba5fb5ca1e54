"""The frame of a script's program: where its datasets are, and an error of the user as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from data.folders import ROOT_VARIABLE
from shared.engine.ranks import let_rank_0_speak
from shared.errors import DeviceError, RanksError, UserError, one_line
from shared.script.running import running_script


def guarded(program: Callable[[], int]) -> int:
    """Run a program; an error that a user can cause becomes a line on stderr and an exit status."""
    script = running_script()
    if script is not None:
        os.environ.setdefault(ROOT_VARIABLE, str(script.parent / "datasets"))
    try:
        return program()
    except UserError as error:
        return _fail(str(error), 2)
    except (RanksError, DeviceError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        return _fail(f"{error.filename or 'file system'}: {(error.strerror or str(error)).lower()}", 2)


def say(line: str) -> None:
    """Print a line for people: on stderr, because the result is on stdout."""
    print(line, file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> int:
    let_rank_0_speak()
    say(one_line(message))
    return status
