"""A verb that torchrun starts several times over, of which one speaks."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

# What rank 0 alone writes and shows.
OF_RANK_0: dict[str, Any] = {"json": None, "report": None, "weights": None, "tracker": None, "quiet": True}


def by_ranks(verb: Callable[..., int | None]) -> Callable[..., int | None]:
    """Have all ranks run a verb together, and rank 0 alone print, write and tell how it ended.

    Where a rank is lost, the first of the others says so. Without torchrun the verb is run as it is.
    """

    @functools.wraps(verb)
    def run(**options: Any) -> int | None:
        if os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ:
            return verb(**options)
        from batchscope.training.ranks import RankLost, rank_here, together

        rank = rank_here()
        if rank:
            options |= {name: value for name, value in OF_RANK_0.items() if name in options}
            if not options.get("debug"):
                # Of this process alone, and for the rest of its life: what it says now, rank 0 says too.
                sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        try:
            with together():
                status = verb(**options)
            return 0 if rank else status
        except RankLost as lost:
            if rank and lost.speaks:
                print(f"batchscope: {lost}", file=sys.__stderr__, flush=True)
            raise
        finally:
            # torchrun ends all ranks once one has ended: not before this one has said its last words.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    return run
