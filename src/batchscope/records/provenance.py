"""Where a number comes from: stored with every result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """The software, the machine and the seed behind a result.

    Attributes:
        created: When, in UTC, ISO 8601.
        batchscope: Version of this package.
        python: Version of the interpreter.
        torch: Version of torch.
        numpy: Version of numpy.
        platform: Operating system and architecture.
        processor: The processor's name.
        cores: Processor cores that this process may use.
        threads: Threads that torch computes with.
        memory_bytes: Physical memory; None where it cannot be read.
        device: The device trained on, with its name where it is not the processor.
        dtype: The parameters' number formats, comma-separated.
        seed: The seed that everything random was derived from.
        workload_fingerprint: A hash of the workload's model, data, loss and optimiser.
    """

    created: str
    batchscope: str
    python: str
    torch: str
    numpy: str
    platform: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int | None
    device: str
    dtype: str
    seed: int
    workload_fingerprint: str
