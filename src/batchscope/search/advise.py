"""Which batch size, learning rate and number of updates to use."""

from __future__ import annotations

from collections.abc import Sequence

from batchscope.progress import Reporter
from batchscope.records import Advice
from batchscope.search.arguments import Question
from batchscope.search.costs import Power
from batchscope.search.recommendation import recommend
from batchscope.search.study import study
from batchscope.workload.workload import Workload


def advise(
    workload: Workload,
    *,
    target: float | None = None,
    examples: int | None = None,
    seconds: float | None = None,
    budget_seconds: float | None = None,
    max_memory_bytes: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    devices: int = 1,
    network: tuple[float, float] | None = None,
    price_per_hour: float | None = None,
    power_watts: Power | None = None,
    time_share: float | None = None,
    seed: int = 0,
    device: str | None = None,
    workers: int | None = None,
    progress: bool | Reporter = False,
) -> Advice:
    """Say which batch size, learning rate and number of updates to use.

    Trains candidates, each a batch size with a learning rate, in small steps: at each step the one whose training is
    expected to save the most for each second that it costs (:class:`batchscope.search.policy.Policy`). It begins with
    the workload's own setting and stops when looking further costs more than it can save.

    Args:
        workload: What is to be trained.
        target: A validation score to reach in the least time. Exactly one of the three is given.
        examples: A number of examples to train on, for the best score.
        seconds: A time of training, evaluation apart, for the best score.
        budget_seconds: What the advice may cost; None: a quarter of the training run that it forecasts, and no
            less than 10 seconds.
        max_memory_bytes: Memory that training may take; None: what is free here.
        batch_sizes: Batch sizes that may be advised; None: powers of two.
        devices: Devices that share each batch.
        network: Bytes per second and seconds of latency between them; needed with several.
        price_per_hour: Price of a device for an hour: what each batch size costs is said too.
        power_watts: Power of a device, for its energy: watts; watts by batch size, as in ``{16: 180, 256: 240}``; or
            "measured", by NVML on a GPU and RAPL on a processor where they may be read, else a default that is called
            assumed.
        time_share: With a target: what is to be least is (1 − time_share)·energy + time_share·most power·time (Zeus:
            You et al. 2023) in place of time alone, which is what 1 means. Power is measured where none is given. It
            changes the choice only where power depends on the batch size.
        seed: Of everything random.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        workers: Processes that read a Dataset; None: as many as pay.
        progress: True shows progress on stderr; or a function that is told of every step.

    Returns:
        The advice. Where training diverged at every rate its ``batch_size`` is None, and ``conclusion`` says what was
        found and what to do.

    Raises:
        ArgumentError: Not exactly one goal, or a setting that makes no sense.

    Examples:
        >>> import batchscope as bs
        >>> advice = bs.advise(bs.load_workload("digits"), target=0.9, budget_seconds=4)
        >>> bs.train(bs.load_workload("digits"), advice.plan).reached
        True
    """
    question = Question(
        workload=workload,
        target=target,
        examples=examples,
        seconds=seconds,
        budget_seconds=budget_seconds,
        max_memory_bytes=max_memory_bytes,
        batch_sizes=batch_sizes,
        devices=devices,
        network=network,
        price_per_hour=price_per_hour,
        power_watts=power_watts,
        time_share=time_share,
        seed=seed,
        device=device,
        workers=workers,
        progress=progress,
    )
    with study(question) as found:
        return recommend(found)
