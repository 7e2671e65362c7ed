"""Write docs/commands.md from the command itself: verbs, arguments, options, examples (a test compares them).

python docs/commands_reference.py
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from batchscope.cli import app, options

HEADER = """# Commands

<!-- Made by docs/commands_reference.py from src/batchscope/cli/; the examples are in that script. -->

`batchscope VERB --help` shows the same in a terminal. A WORKLOAD is the name of a built-in workload (see `batchscope
workloads`), `path/to/file.py:name` or `package.module:name`, where the name is a `Workload` or a function that returns
one. Separate the items of a list by commas.
"""

# A further description of each verb, and example commands, which a test runs in this order in one folder.
EXAMPLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "workloads": ("", ("batchscope workloads",)),
    "advise": (
        "Give exactly one of `--target`, `--examples` and `--seconds`. Restrict the settings to consider with "
        "`--batch-sizes`, `--max-memory`, `--devices` and `--network`, and the cost of the advice itself with "
        "`--budget`. `--price` and `--power` add cost and energy to every batch size; `--cost 0.5` weighs time and "
        "energy equally. See [methods](methods.md#the-search).",
        ("batchscope advise digits --examples 20000 --budget 5 --json advice.json --report advice.html",),
    ),
    "train": (
        "With a saved advice, it reports whether the prediction held. With `--auto`, it searches for the setting and "
        "continues with the best candidate. Under torchrun, ranks share every batch: see [several "
        "processes](data-parallel.md). Schedules are described in the [reference](reference.md#schedules).",
        (
            "batchscope train digits --plan advice.json",
            "batchscope train digits --batch-size 32 --learning-rate 0.1 --iterations 200 --shape linear "
            "--weights best.safetensors",
            "batchscope train digits --examples 12800 --shape cooldown --schedule smith:at=6400/9600,factor=2 --noise "
            "--json t.json",
        ),
    ),
    "compare": (
        "A pair is a batch size and a number of updates; all pairs use the same number of examples. See "
        "[methods](methods.md#what-is-held-equal).",
        ("batchscope compare digits 32x64 128x16 --seeds 2 --learning-rate rescaled --json c.json --report c.html",),
    ),
    "probe": (
        "Given a saved probe, it adapts the probe to another machine without measuring. See "
        "[methods](methods.md#the-three-limits-together).",
        (
            "batchscope probe digits --seconds 5 --no-branches --no-range-test --json p.json --report p.html",
            "batchscope probe p.json --memory 8GiB --speed 4",
        ),
    ),
    "plan": (
        "It reads the JSON of a probe, and with `--law` that of a sweep or a trade-off law. See "
        "[methods](methods.md#past-one-machine).",
        (
            "batchscope plan p.json --devices 1,8,64 --network 12,20 --target-examples 60000 --price 2.5 "
            "--report d.html",
        ),
    ),
    "sweep": (
        "With `--store`, the same command resumes an interrupted sweep. See [methods](methods.md#the-sweep).",
        (
            "batchscope sweep digits --batch-sizes 16,64,256 --learning-rates 0.1,0.4 --seeds 2 --target 0.9 "
            "--store s.db",
        ),
    ),
    "export": ("", ("batchscope export s.db --csv trials.csv",)),
    "fit": ("See [methods](methods.md#the-trade-off-law).", ("batchscope fit trials.csv",)),
    "sharpness": (
        "See [methods](methods.md#sharpness).",
        ("batchscope sharpness digits --weights best.safetensors --repeats 1",),
    ),
    "landscape": (
        "See [methods](methods.md#landscapes).",
        ("batchscope landscape digits --examples 256 --points 9 --report line.html",),
    ),
    "claims": (
        "`--paper` reproduces a paper's results at a size that this machine can run, and shows the published numbers "
        "next to them. Results on the digits: [claims](claims/index.md). See [methods](methods.md#claims).",
        ("batchscope claims digits --only throughput-saturates --seeds 2 --budget 5 --report claims.html",),
    ),
    "report": ("", ("batchscope report c.json",)),
    "doctor": (
        "For each device, it shows the memory that training may take and what sets that limit. `batchscope "
        "--install-completion` sets up shell completion of verbs, options and workload names.",
        ("batchscope doctor",),
    ),
}

STATUS = """
## Exit status

| status | meaning |
|---|---|
| 0 | done |
| 1 | the run failed; with `advise`, no setting can be advised, and the record says why |
| 2 | the arguments were wrong; nothing was run |
| 130 | interrupted; finished results are kept |

Press Ctrl-C once to stop after the current update and write the finished results, twice to stop at once. A wrong
argument gives one message on stderr: the rule, the value given, and what to do.
"""

WORDS = {str: "text", int: "whole number", float: "number", Path: "path"}


def main() -> None:
    """Write the file."""
    Path(__file__).with_name("commands.md").write_text(reference(), encoding="utf-8")


def reference() -> str:
    """The whole text."""
    verbs = {
        command.callback.__name__: command.callback
        for command in app.registered_commands
        if command.callback is not None
    }
    if set(verbs) != set(EXAMPLES):
        raise SystemExit(f"EXAMPLES must be of {sorted(verbs)}; got {sorted(EXAMPLES)}")
    sections = [_section(name, verbs[name]) for name in EXAMPLES]
    common = {one.flag: one for verb in verbs.values() for one in parameters(verb) if one.shared}
    table = "\n## Common options\n\n" + _table(common.values())
    return HEADER + "".join(sections) + table + STATUS


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One argument or option of a verb: how it is written, what it takes, what it is."""

    flag: str
    takes: str
    meaning: str
    argument: bool
    required: bool
    shared: bool


def parameters(verb: Callable[..., Any]) -> list[Parameter]:
    """What a verb takes, in the order of its signature."""
    hints = typing.get_type_hints(verb, include_extras=True)
    common = [hint for hint in vars(options).values() if typing.get_origin(hint) is typing.Annotated]
    found = []
    for name, parameter in inspect.signature(verb).parameters.items():
        kind, info = typing.get_args(hints[name])[:2]
        argument = isinstance(info, ArgumentInfo)
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        said = "" if default is None or default is False or argument else f" Default: {_written(kind, default)}."
        found.append(
            Parameter(
                flag=info.metavar or name.upper() if argument else _flag(name, kind, info),
                takes=_takes(kind),
                meaning=(info.help or "") + said,
                argument=argument,
                required=parameter.default is inspect.Parameter.empty,
                shared=not argument and hints[name] in common,
            )
        )
    return found


def _flag(name: str, kind: Any, info: OptionInfo) -> str:
    plain = "--" + name.replace("_", "-")
    # In an Annotated the first name stands where a default would; typer sorts that out when it builds the command.
    first = (info.default,) if isinstance(info.default, str) and info.default.startswith("-") else ()
    names = (*first, *(info.param_decls or ()))
    if kind is bool and not names:
        return f"{plain}`, `--no-{plain[2:]}"
    return "`, `".join(names or (plain,))


def _takes(kind: Any) -> str:
    """What is written after a flag."""
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return _takes(typing.get_args(kind)[0])
    inner = [one for one in typing.get_args(kind) if one is not type(None)]
    return " or ".join(_takes(one) for one in inner) if inner else WORDS.get(kind, "")


def _written(kind: Any, value: object) -> str:
    if kind is bool:
        return "on"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _section(name: str, verb: Callable[..., Any]) -> str:
    summary = (inspect.getdoc(verb) or "").split("\n\n")[0]
    said, commands = EXAMPLES[name]
    taken = parameters(verb)
    arguments = [one for one in taken if one.argument]
    usage = " ".join(one.flag if one.required else f"[{one.flag}]" for one in arguments)
    own = [one for one in taken if not one.shared]
    common = ", ".join(f"`{one.flag}`" for one in taken if one.shared)
    lines = [f"\n## {name}\n\n{' '.join(summary.split())}{' ' + said if said else ''}\n"]
    lines.append(f"\n`batchscope {name}{' ' + usage if usage else ''} [OPTIONS]`\n")
    lines.append("\n```console\n" + "".join(f"$ {command}\n" for command in commands) + "```\n")
    if own:
        lines.append("\n" + _table(own))
    if common:
        lines.append(f"\n{'And' if own else 'Only'} the [common options](#common-options) {common}.\n")
    return "".join(lines)


def _table(rows: Iterable[Parameter]) -> str:
    body = "".join(f"| `{one.flag}` | {one.takes} | {one.meaning} |\n" for one in rows)
    return "| option | takes | meaning |\n|---|---|---|\n" + body


if __name__ == "__main__":
    main()
