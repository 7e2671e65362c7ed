"""What there is on a machine for batchscope to work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchscope.records.base import Record
from batchscope.records.memory import LimitSource


@dataclass(frozen=True)
class PackageHere:
    """A package, and whether it is here.

    Attributes:
        name: Its name, as pip calls it.
        version: The version that is installed; None where it is not.
        gives: What it is used for.
        install: The argument for ``pip install``.
        optional: Whether batchscope works without it.
    """

    name: str
    version: str | None
    gives: str
    install: str
    optional: bool


@dataclass(frozen=True)
class DeviceHere:
    """A device that can be trained on.

    Attributes:
        name: As ``--device`` takes it.
        title: What it is.
        available_bytes: Memory that training may take now; None where it cannot be read.
        limit_source: What sets that limit.
        total_bytes: Memory that the device has; None where it cannot be read.
    """

    name: str
    title: str
    available_bytes: int | None
    limit_source: LimitSource
    total_bytes: int | None


@dataclass(frozen=True)
class DataHere:
    """The data of a built-in workload.

    Attributes:
        workload: Its name.
        available: Whether they are on this machine.
        location: Where they are, or where they would be downloaded from.
    """

    workload: str
    available: bool
    location: str


@dataclass(frozen=True)
class Check:
    """Something that was tried out.

    Attributes:
        what: What was tried.
        works: Whether it works here.
        said: What came of it, or what is done without it.
    """

    what: str
    works: bool
    said: str


@dataclass(frozen=True)
class Diagnosis(Record):
    """What ``batchscope doctor`` finds: versions, devices and their memory, data, and what works on this machine.

    Attributes:
        created: When, in UTC, ISO 8601.
        batchscope: Version of this package.
        python: Version of the interpreter.
        platform: Operating system and architecture.
        processor: The processor's name.
        cores: Processor cores that this process may use.
        threads: Threads that torch computes with.
        devices: A line per device, the processor first.
        packages: A line per package, those that are needed first.
        data: A line per built-in workload.
        checks: What was tried out.
    """

    kind: ClassVar[str] = "diagnosis"

    created: str
    batchscope: str
    python: str
    platform: str
    processor: str
    cores: int
    threads: int
    devices: tuple[DeviceHere, ...]
    packages: tuple[PackageHere, ...]
    data: tuple[DataHere, ...]
    checks: tuple[Check, ...]
