"""One rank: ``ranks_worker.py FOLDER`` trains every case, and writes what came of it."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training.ranks_cases import CASES

import batchscope as bs


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or CASES:
        before = torch.get_rng_state()
        result = CASES[name].train(folder / f"{name}.ckpt")
        assert torch.equal(torch.get_rng_state(), before)
        result.to_json(folder / f"{name}-{rank_here()}.json")


if __name__ == "__main__":
    from batchscope.training.ranks import rank_here

    main(Path(sys.argv[1]), sys.argv[2:])
