"""One of the ranks that torchrun starts for ``test_ranks.py``: ``ranks_worker.py FOLDER`` trains every case.

At its first start the command at the end is killed on rank 0; torchrun starts all ranks once more, and it goes on.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training.ranks_cases import CASES, COMMAND, DROPOUT, MEASURED, REFUSED

from batchscope.cli import main
from batchscope.errors import BatchscopeError
from batchscope.measure.communication import all_reduce_law
from batchscope.training.ranks import rank_here, together

FOLDER = Path(sys.argv[-1])
RANK = rank_here()


def train(name: str, folder: Path = FOLDER) -> None:
    before = torch.get_rng_state()
    CASES[name].train(folder / f"{name}.ckpt").to_json(folder / f"{name}-{RANK}.json")
    assert torch.equal(torch.get_rng_state(), before)


def refused(name: str) -> None:
    try:
        REFUSED[name].train(FOLDER / f"{name}.ckpt")
    except (BatchscopeError, ValueError) as error:
        (FOLDER / f"{name}-{RANK}.txt").write_text(str(error))


def go_on(name: str) -> None:
    again = FOLDER / "again"
    if RANK == 0:
        shutil.copy(FOLDER / f"{name}.ckpt", again / f"{name}.ckpt")
    train(name, again)


def signal_at(update: int, *, rank: int, number: signal.Signals) -> None:
    os.environ.update(AT=str(update), WHO=str(rank), SIGNAL=str(int(number)))


def first_start() -> None:
    for name in REFUSED:
        refused(name)
    for name in CASES:
        if name.startswith("interrupted"):
            signal_at(31, rank=1, number=signal.SIGINT)
        train(name)
        os.environ["AT"] = ""
    train("interrupted", FOLDER / "from one")
    for name in (DROPOUT, MEASURED):
        train(name, FOLDER / "unbroken")
        go_on(name)
    law = all_reduce_law(message_bytes=(1 << 10, 1 << 22), seconds=0.05)
    (FOLDER / f"law-{RANK}.txt").write_text(repr(law))
    signal_at(31, rank=0, number=signal.SIGKILL)


def fail_alone() -> None:
    """Rank 1 fails outside of the training, and the others wait for it."""
    try:
        with together() as ranks:
            assert ranks is not None
            if RANK == 1:
                raise ValueError("only here")
            ranks.exchange(None)
    except (BatchscopeError, ValueError) as error:
        (FOLDER / f"alone-{RANK}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    restarted = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if not restarted:
        first_start()
    sys.argv = ["batchscope", *COMMAND, "--checkpoint", f"{FOLDER}/killed.ckpt", "--json", f"{FOLDER}/killed-0.json"]
    try:
        main()
    finally:
        if restarted:
            fail_alone()
