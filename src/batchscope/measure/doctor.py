"""What this machine has for batchscope: versions, devices, memory, data, and whether forks, CUDA and charts work."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Callable

import torch

from batchscope.errors import first_line
from batchscope.measure.child import can_fork, in_child
from batchscope.measure.memory_meter import available_memory
from batchscope.provenance import available_cores, memory_bytes, processor, version
from batchscope.records.diagnosis import Check, DataHere, DeviceHere, Diagnosis, PackageHere
from batchscope.workload.catalogue import describe

FORK_SECONDS = 30.0

NEEDED = {
    "torch": "training",
    "numpy": "arithmetic",
    "scipy": "intervals and fits",
    "scikit-learn": "the digits workload",
    "typer": "the command",
    "rich": "tables and progress",
    "safetensors": "checkpoints and weights",
    "altair": "charts and pages",
    "vl-convert-python": "charts and pages",
}
# What is used where it is there, what it gives, and the argument for pip install.
OPTIONAL = {
    "ray": ("sweeps on many machines", "batchscope[ray]"),
    "pyarrow": ("export to Parquet", "batchscope[parquet]"),
    "pandas": ("rows as data frames", "batchscope[pandas]"),
    "polars": ("rows as data frames", "batchscope[polars]"),
    "tensorboardX": ("curves in TensorBoard", "batchscope[tensorboard]"),
    "mlflow-skinny": ("runs in MLflow", "batchscope[mlflow]"),
    "wandb": ("runs in Weights & Biases", "batchscope[wandb]"),
    "lightning": ("a callback and workloads for Lightning", "batchscope[lightning]"),
    "transformers": ("a callback and workloads for transformers", "batchscope[transformers]"),
    "accelerate": ("the noise scale and workloads with accelerate", "batchscope[accelerate]"),
    "skorch": ("a callback and workloads for skorch", "batchscope[skorch]"),
    "nvidia-ml-py": ("the power that NVIDIA GPUs take", "batchscope[power]"),
}


def diagnose() -> Diagnosis:
    """Look at this machine; nothing is trained, downloaded or changed.

    Returns:
        What was found. What does not work here is a line in it, and no error.

    Examples:
        >>> found = diagnose()
        >>> found.devices[0].name, found.python == platform.python_version()
        ('cpu', True)
    """
    return Diagnosis(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        batchscope=version(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor(),
        cores=available_cores(),
        threads=torch.get_num_threads(),
        # Forks come first: once CUDA is in use, no more are made.
        checks=(_tried("a child process by fork", _fork), _tried("CUDA", _cuda), _tried("charts", _chart)),
        devices=tuple(map(_device, _devices())),
        packages=_packages(),
        data=tuple(DataHere(found.name, found.available, found.location) for found in describe()),
    )


def _tried(what: str, work: Callable[[], tuple[bool, str]]) -> Check:
    try:
        works, message = work()
    except Exception as error:  # whatever is broken is what we were asked for
        works, message = False, first_line(error)
    return Check(what, works, message)


def _fork() -> tuple[bool, str]:
    if not can_fork():
        return False, "memory is measured in this process, and sweeps run in it"
    ended = in_child(lambda: float((torch.ones(8, 8) @ torch.ones(8, 8)).sum()), seconds=FORK_SECONDS)
    works = ended.ending == "done" and ended.value == 512.0
    return works, "memory is measured, and sweeps run, in children" if works else f"{ended.ending}: {ended.message}"


def _cuda() -> tuple[bool, str]:
    built = torch.version.cuda
    if not torch.cuda.is_available():
        why = "this torch is built without it" if built is None else f"no device that CUDA {built} can use"
        return False, f"{why}; training is on the processor"
    one = torch.ones(8, 8, device="cuda")
    works = float((one @ one).sum()) == 512.0
    return works, f"CUDA {built}, tried with a product" if works else "a product came out wrong"


def _chart() -> tuple[bool, str]:
    import altair
    import vl_convert

    chart = {"data": {"values": [{"x": 1}]}, "mark": "point", "encoding": {"x": {"field": "x", "type": "quantitative"}}}
    drawn = str(vl_convert.vegalite_to_svg(chart))
    tools = f"Altair {altair.__version__}, Jinja {importlib.metadata.version('jinja2')}"
    return "<svg" in drawn, f"pages, PNG and SVG, with {tools}"


def _devices() -> list[torch.device]:
    cuda = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [torch.device("cpu"), *cuda]


def _device(device: torch.device) -> DeviceHere:
    available, source = available_memory(device)
    if device.type == "cuda":
        total: int | None = int(torch.cuda.get_device_properties(device).total_memory)
        title = torch.cuda.get_device_name(device)
    else:
        total, title = memory_bytes(), processor()
    return DeviceHere(str(device), title, available, source, total)


def _packages() -> tuple[PackageHere, ...]:
    needed = [PackageHere(name, _version(name), gives, name, optional=False) for name, gives in NEEDED.items()]
    optional = [
        PackageHere(name, _version(name), gives, install, optional=True) for name, (gives, install) in OPTIONAL.items()
    ]
    return (*needed, *optional)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
