"""One seed's environments and batches split over 1, 2, 4 and 8 devices: speed, what crosses between them, and how equal it is.

Virtual devices of a CPU share its cores, so they can only show what splitting costs. Collectives are counted in the compiled
program, those of a loop's body as often as it runs; bytes are of one device's results. ``deviation`` is the largest relative
difference of a parameter (norms of differences over norms) after two segments from the same program on one device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import setup, timing

DEVICES = (1, 2, 4, 8)
TASK = "peg_insert"


class Collective(NamedTuple):
    """An operation between devices in a compiled program."""

    kind: str
    bytes: int
    times: int


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every number of devices that is there."""
    counts = [count for count in DEVICES if len(jax.devices()) % count == 0]
    fields: dict[str, Any] = {
        "finetune__envs": 64,
        "finetune__pool": 16,
        "finetune__rows": setup.ROWS,
    }
    if quick:
        counts, fields = (
            counts[:2],
            {"finetune__envs": 8, "finetune__pool": 4, "policy__hidden": (16, 16)},
        )
    made = {count: setup.make(TASK, data=count, **fields) for count in counts}
    found: dict[str, dict[str, Any]] = {}
    programs: dict[str, Any] = {}
    first = None
    for count, each in made.items():
        train = each.start()
        compiled = each.learner.compile(train)
        for _ in range(2):
            train, _ = compiled.segment(train)
        state = jax.device_get(train.state)
        first = state if first is None else first
        crossing = [
            c
            for program in (compiled.collect, compiled.learn)
            for c in collectives(program.as_text())
        ]
        inside = [
            c for c in crossing if c.times % each.size.updates == 0 and c.times >= each.size.updates
        ]
        name = f"{count} devices" if count > 1 else "1 device"
        found[name] = {
            "all_reduces_per_update": sum(c.times for c in inside if c.kind == "all-reduce")
            / each.size.updates,
            "bytes_per_update": sum(c.bytes * c.times for c in inside) // each.size.updates,
            "collectives_per_segment": sum(c.times for c in crossing),
            "deviation": float(f"{deviation(state, first):.2g}"),
        }
        programs[name] = setup.stepper(compiled.segment, train)
    spent = timing.measure(programs, 2 if quick else 5)
    for each, (name, figures) in zip(made.values(), found.items(), strict=True):
        figures["steps_per_s"] = round(each.size.env_steps / spent[name].seconds)
        figures["of_one_device"] = timing.ratio(spent["1 device"].wall, spent[name].wall).told()
    yield from found.items()


def deviation(state: Any, reference: Any) -> float:
    """The largest ‖a − b‖/‖b‖ over the parameters."""

    def apart(a: Any, b: Any) -> float:
        size = float(np.linalg.norm(np.ravel(b).astype(np.float64)))
        return (
            float(np.linalg.norm(np.ravel(a).astype(np.float64) - np.ravel(b))) / size
            if size
            else 0.0
        )

    return max(map(apart, jax.tree.leaves(state), jax.tree.leaves(reference)))


_OPERATION = re.compile(
    r"= (\(?.*?\)?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(pred|s8|u8|bf16|f16|s32|u32|f32|s64|u64|f64)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)=(?:\{([^}]*)\}|%([\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


def collectives(hlo: str) -> Iterator[Collective]:
    """Those of a compiled program's text, with how often each runs."""
    bodies: dict[str, list[str]] = {}
    name = ""
    entry = ""
    for line in hlo.splitlines():
        begins = _COMPUTATION.match(line)
        if begins and not line.startswith(" "):
            name = begins[1]
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    yield from _within(bodies, entry, 1)


def _within(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        operation = _OPERATION.search(line)
        if operation:
            yield Collective(operation[2], _bytes(operation[1]), times)
            continue
        trips = _TRIPS.search(line)
        for several, one in _CALLED.findall(line):
            for each in (several or one).split(", "):
                yield from _within(
                    bodies, each.lstrip("%"), times * (int(trips[1]) if trips else 1)
                )


def _bytes(shapes: str) -> int:
    return sum(
        _SIZES.get(kind, 4) * int(np.prod([int(n) for n in dims.split(",") if n]))
        for kind, dims in _ARRAY.findall(shapes)
    )
