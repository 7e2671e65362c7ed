"""What a diagnosis of a machine says, and its page."""

from __future__ import annotations

from batchscope.records import DeviceHere, Diagnosis
from batchscope.report import formatting as f
from batchscope.report.content import Content, Facts, Section
from batchscope.report.sheets import Column, Line, Sheet

SOURCES = {
    "CUDA device": "free on the device",
    "control group": "what its control group allows",
    "process limit": "what this process's limits allow",
    "free memory": "free memory",
    "given": "given",
    "unknown": "not known here",
}


def answer(record: Diagnosis) -> str:
    """What is missing, if anything that is needed is."""
    missing = [package for package in record.packages if package.version is None]
    needed = [package.name for package in missing if not package.optional]
    if needed:
        return f"What batchscope needs is not all here: {', '.join(needed)}. Run: pip install batchscope."
    optional = [package.name for package in missing]
    more = f" Not here, and needed only for what they give: {', '.join(optional)}." if optional else ""
    return f"Everything that batchscope needs is here.{more}"


def facts(record: Diagnosis) -> Facts:
    """Versions, processor and threads."""
    return (
        ("batchscope", record.batchscope),
        ("Python", record.python),
        ("system", record.platform),
        ("processor", record.processor),
        ("cores that may be used", f.count(record.cores)),
        ("threads of torch", f.count(record.threads)),
        ("looked at", record.created),
    )


def lists(record: Diagnosis) -> tuple[tuple[str, Facts], ...]:
    """The machine, its devices, what was tried out, and the data of the built-in workloads."""
    return (
        ("This machine", facts(record)),
        ("Devices", tuple((device.name, _device(device)) for device in record.devices)),
        (
            "Tried out",
            tuple((check.what, f"{'works' if check.works else 'no'}: {check.said}") for check in record.checks),
        ),
        (
            "Data of the built-in workloads",
            tuple(
                (data.workload, f"{'here' if data.available else 'not here'}: {data.location}") for data in record.data
            ),
        ),
    )


def of_diagnosis(record: Diagnosis) -> Content:
    """The page of a diagnosis.

    Args:
        record: The record.
    """
    machine, devices, checks, data = lists(record)
    return Content(
        name=record.platform,
        title="What there is on this machine",
        answer=answer(record),
        sections=(
            Section("The machine", facts=(machine, devices)),
            Section("What works", facts=(checks, data)),
            Section("Packages", sheets=(packages(record),)),
        ),
    )


def _device(device: DeviceHere) -> str:
    free = f"{f.memory(device.available_bytes)} to train in ({SOURCES[device.limit_source]})"
    return f"{device.title}, {free} of {f.memory(device.total_bytes)}"


def packages(record: Diagnosis) -> Sheet:
    """A line per package, and how to get those that are missing."""
    columns = (
        Column("package", align="left"),
        Column("version", align="left"),
        Column("gives", align="left"),
        Column("where it is missing", align="left", minor=True),
    )
    lines = tuple(
        Line((p.name, p.version or "not here", p.gives, "" if p.version else f"pip install '{p.install}'"))
        for p in record.packages
    )
    return Sheet("Packages", columns, lines)
