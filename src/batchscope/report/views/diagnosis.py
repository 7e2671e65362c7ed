"""What is shown of a diagnosis of a machine."""

from __future__ import annotations

from batchscope.records import DeviceHere, Diagnosis, PackageHere
from batchscope.report import formatting as f
from batchscope.report.view import Column, Section, View, table

SOURCES = {
    "CUDA device": "free on the device",
    "control group": "what its control group allows",
    "process limit": "what this process's limits allow",
    "free memory": "free memory",
    "given": "given",
    "unknown": "not known here",
}


def view(record: Diagnosis) -> View:
    """What there is on this machine, and what is missing."""
    machine = (
        ("batchscope", record.batchscope),
        ("Python", record.python),
        ("system", record.platform),
        ("processor", record.processor),
        ("cores that may be used", f.count(record.cores)),
        ("threads of torch", f.count(record.threads)),
        ("checked at", record.created),
    )
    checks = tuple((check.what, f"{'works' if check.works else 'no'}: {check.said}") for check in record.checks)
    data = tuple(
        (data.workload, f"{'here' if data.available else 'not here'}: {data.location}") for data in record.data
    )
    devices = tuple((device.name, _device(device)) for device in record.devices)
    columns: tuple[Column[PackageHere], ...] = (
        Column("package", lambda p: p.name, align="left"),
        Column("version", lambda p: p.version or "not here", align="left"),
        Column("gives", lambda p: p.gives, align="left"),
        Column("if missing", lambda p: "" if p.version else f"pip install '{p.install}'", align="left", minor=True),
    )
    packages = table("Packages", record.packages, columns)
    return View(
        name=record.platform,
        title="What there is on this machine",
        answer=answer(record),
        sections=(
            Section("The machine", facts=(("This machine", machine), ("Devices", devices)), on="both"),
            Section("What works", facts=(("Tried out", checks), ("Data of the built-in workloads", data)), on="both"),
            Section("Packages", tables=(packages,), on="both"),
        ),
    )


def answer(record: Diagnosis) -> str:
    """What is missing, if anything that is needed is."""
    missing = [package for package in record.packages if package.version is None]
    needed = ", ".join(package.name for package in missing if not package.optional)
    if needed:
        return f"Required packages are missing: {needed}. Run: pip install batchscope."
    optional = ", ".join(package.name for package in missing)
    return "Everything that batchscope needs is here." + (
        f" Optional packages not here: {optional}." if optional else ""
    )


def _device(device: DeviceHere) -> str:
    free = f"{f.memory(device.available_bytes)} to train in ({SOURCES[device.limit_source]})"
    return f"{device.title}, {free} of {f.memory(device.total_bytes)}"
