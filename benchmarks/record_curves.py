"""Record learning curves of the real networks over batch size, learning rate and seed, each in a plain loop.

    python benchmarks/record_curves.py [--networks conv lstm ...] [--processes 2] [--early] [--collect]

A run is one process of one thread. The recorder may be stopped at any moment (Ctrl-C, kill, kill -9); started again, it
goes on with the settings that have no file yet; those that ``make bench-real`` has asked about come first. In the end
it writes what has finished, rounded and compressed, into benchmarks/ground_truth/real; `--collect` does that alone,
also while a recorder runs. `--early` records the beginnings of a coarse grid, up to a third of the best run, for the
replay of the search; a run that is recorded whole takes the place of its beginning.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from curves_schedule import Seen, Setting, early_grid, next_setting
from curves_table import CURVES, collect, estimate, is_beginning, time_to_target
from real import TASKS, RealTask

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "real-curves"
POLL = 0.5  # seconds between looks at the running processes
EARLY_SHARE = 0.3  # of the best run, to which a beginning is recorded
MAX_FAILURES = 3  # of one network, after which it is left alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder of the finished runs")
    parser.add_argument("--early", action="store_true", help="record the beginnings of a coarse grid")
    parser.add_argument("--collect", action="store_true", help="only compress what has finished")
    parser.add_argument("--collect-into", type=Path, default=CURVES)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, also in the background
    if not arguments.collect:
        for name in arguments.networks:
            restore(name, arguments.out / name, arguments.collect_into)
        try:
            record(arguments.networks, arguments.out, arguments.processes, early=arguments.early)
        except KeyboardInterrupt:
            print("Stopped; started again, it goes on with the runs that have not finished.")
    for name in arguments.networks:
        if (arguments.out / name / "timing.json").exists():
            path = collect(TASKS[name], arguments.out / name, arguments.collect_into)
            print(f"{path}: {path.stat().st_size:,} bytes")


def restore(name: str, folder: Path, kept: Path) -> int:
    """Unpack the runs of a network that are kept compressed, so that a fresh clone goes on from them.

    Args:
        name: The network.
        folder: Where its finished runs go; those that are there stay.
        kept: Folder of the compressed files.

    Returns:
        How many runs were unpacked.
    """
    file = kept / f"{name}.json.gz"
    if not file.exists():
        return 0
    whole = json.loads(gzip.decompress(file.read_bytes()))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "timing.json").exists():
        (folder / "timing.json").write_text(json.dumps(whole["timing"]))
    missing = [c for c in whole["curves"] if not _path(folder, c["batch_size"], c["step"], c["seed"]).exists()]
    for curve in missing:
        _path(folder, curve["batch_size"], curve["step"], curve["seed"]).write_text(json.dumps(curve))
    return len(missing)


def record(networks: list[str], out: Path, processes: int, *, early: bool = False) -> None:
    """Record until nothing is left to do, one run of each network in turn."""
    queue = list(networks)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failures = dict.fromkeys(networks, 0)
    try:
        while queue or running:
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if running.pop(name).returncode:
                    failures[name] += 1
                if failures[name] < MAX_FAILURES:
                    queue.append(name)
            while queue and len(running) < processes:
                name = queue.pop(0)
                command = next_command(TASKS[name], out / name, early=early)
                if command is not None:
                    running[name] = subprocess.Popen(
                        [sys.executable, str(HERE / "record_one.py"), name, *command],
                        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                    )
            time.sleep(POLL)
    finally:
        for process in running.values():
            process.kill()


def next_command(task: RealTask, folder: Path, *, early: bool = False) -> list[str] | None:
    """Arguments of record_one.py for the next run of a network; None where all are there.

    Args:
        task: The network.
        folder: Where its finished runs are.
        early: Whether only the beginnings of a coarse grid are wanted.

    Returns:
        What follows the network's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    curves = [json.loads(path.read_text()) for path in sorted(folder.glob("b*.json"))]
    if curves and not (folder / "timing.json").exists():
        print(f"{time.strftime('%H:%M:%S')} {task.name}: timing", flush=True)
        return ["--timing", str(folder / "timing.json")]
    seen = []
    begun = {Setting(c["batch_size"], c["step"], c["seed"]) for c in curves if is_beginning(c)}
    for curve in curves:
        if is_beginning(curve):
            continue
        seconds = estimate(curve, curves, task.target)
        reached = time_to_target(curve, task.target) is not None
        seen.append(Seen(Setting(curve["batch_size"], curve["step"], curve["seed"]), seconds, reached))
    known = {one.setting for one in seen}
    best = min((s for s in seen if s.reached), key=lambda s: s.seconds, default=None)
    if early:
        grid = early_grid(task.batch_sizes, best.setting) if best is not None else []
        setting = next((one for one in grid if one not in known | begun), None)
    else:
        setting = next((one for one in asked(task, folder.parent.parent) if one not in known), None)
        setting = setting or next_setting(task.batch_size, task.batch_sizes, seen)
    if setting is None:
        print(f"{time.strftime('%H:%M:%S')} {task.name}: complete", flush=True)
        return None
    path = _path(folder, *setting)
    shown = f"best {best.seconds:.1f} s at {best.setting.batch_size}, 2^{best.setting.step}" if best else "no best"
    print(
        f"{time.strftime('%H:%M:%S')} {task.name}: {len(curves)} curves, {shown}; now {setting.batch_size}, "
        f"2^{setting.step}, seed {setting.seed}",
        flush=True,
    )
    command = [*map(str, setting), str(path)]
    if best is not None and math.isfinite(best.seconds):
        command += ["--best", str(_path(folder, *best.setting)), "--best-seconds", str(best.seconds)]
    return [*command, "--until", str(EARLY_SHARE)] if early else command


def asked(task: RealTask, build: Path) -> list[Setting]:
    """Settings that the advice gave in ``make bench-real``, then those that it was asked from."""
    file = build / "bench-advice-real.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    rows = [row for row in rows if row["network"] == task.name]
    pairs = [row["advised"] for row in rows if row["advised"]] + [row["reference"] for row in rows]
    return [Setting(int(size), round(math.log2(rate / task.learning_rate))) for size, rate in pairs]


def _path(folder: Path, batch_size: int, step: int, seed: int) -> Path:
    return folder / f"b{batch_size}_r{step:+d}_s{seed}.json"


if __name__ == "__main__":
    main()
