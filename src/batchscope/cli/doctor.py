"""What this machine has."""

from __future__ import annotations

from batchscope.cli.options import Output


def doctor(*, common: Output) -> None:
    """Show versions, devices, free memory, data sets, and whether forking, CUDA and charts work."""
    common.check()
    from batchscope.measure.doctor import diagnose

    common.show(diagnose())
