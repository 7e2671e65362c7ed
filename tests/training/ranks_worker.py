"""One rank: ``ranks_worker.py FOLDER CASE...`` trains cases, and writes what came of them.

A case is ``name``, ``folder/name``, or ``name@AT,WHO,SIGNAL`` for one whose model sends a rank a signal at an update.
"""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training.ranks_cases import CASES, REFUSED

from batchscope.errors import BatchscopeError
from batchscope.measure.communication import all_reduce_law
from batchscope.training.rank_places import rank_here


def train(folder: Path, case: str) -> None:
    before = torch.get_rng_state()
    case, _, at = case.partition("@")
    os.environ["AT"], os.environ["WHO"], os.environ["SIGNAL"] = at.split(",") if at else ("", "", "")
    folder, name = (folder / case).parent, Path(case).name
    if name in REFUSED:
        try:
            REFUSED[name].train(folder / f"{name}.ckpt")
        except BatchscopeError as error:
            (folder / f"{name}-{rank_here()}.txt").write_text(str(error))
    else:
        CASES[name].train(folder / f"{name}.ckpt").to_json(folder / f"{name}-{rank_here()}.json")
    assert torch.equal(torch.get_rng_state(), before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    for case in sys.argv[2:]:
        if case == "law":
            law = all_reduce_law(message_bytes=(1 << 10, 1 << 22), seconds=0.05)
            (place / f"law-{rank_here()}.txt").write_text(repr(law))
        else:
            train(place, case)
