"""How long a score will take, from its first passes."""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.errors import UserError
from shared.scoring.bits_per_byte import Progress
from shared.units import format_duration

# The first pass is not counted: it compiles. Then so many passes and seconds, whichever take longer, tell the rest.
FEWEST_PASSES = 3
LEAST_S = 5.0


def within(minutes: float, progress: Progress, clock: Callable[[], float] = time.monotonic) -> Progress:
    """The progress of a score that must not take longer than `minutes`, from now on.

    Once enough was measured it raises UserError where the whole score would take longer; a score that fits by then is
    not ended. Raises UserError for a limit that is not above zero.
    """
    if not 0.0 < minutes < float("inf"):
        raise UserError(f"--minutes {minutes}: must be above 0")
    begin_s = clock()
    seen: list[tuple[int, float]] = []
    judged = False

    def watched(done: int, total: int) -> None:
        nonlocal judged
        progress(done, total)
        now_s = clock()
        seen.append((done, now_s))
        passes = len(seen) - 1
        if judged or passes < FEWEST_PASSES or (now_s - seen[0][1] < LEAST_S and done < total):
            return
        judged = True
        needed_s = now_s - begin_s + (now_s - seen[0][1]) / (done - seen[0][0]) * (total - done)
        if needed_s > 60.0 * minutes:
            raise UserError(
                f"--minutes {minutes:g}: by its first {passes} passes the score takes {format_duration(needed_s)}; "
                "--max-symbols N scores a part"
            )

    return watched
