"""One seed's environments and batches split over 1, 2, 4 and 8 devices: speed and communication.

Virtual devices of a CPU share its cores, so they can only show what splitting costs. Collectives
are counted in the compiled program, those in the body of a loop as often as it runs; bytes are of
one device's results. ``deviation`` is the largest relative difference of a parameter (norm of the
difference over norm) from the same program on one device, after two segments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import setup, timing
from gcp_jax.types import PyTree

DEVICES = (1, 2, 4, 8)
TASK = "peg_insert"
FIELDS: dict[str, Any] = {
    "finetune__envs": 64,
    "finetune__reset_pool": 16,
    "finetune__unroll_chunks": setup.UNROLL_CHUNKS,
}
QUICK: dict[str, Any] = {"finetune__envs": 8, "finetune__reset_pool": 4, "policy__hidden": (16, 16)}


class Collective(NamedTuple):
    """An operation between devices in a compiled program."""

    kind: str
    bytes: int
    times: int


class _SplitRun(NamedTuple):
    """A run on several devices after two segments."""

    made: setup.BenchmarkRun
    state: PyTree  # of the method, on the host
    collectives: list[Collective]
    step: Callable[[], PyTree]  # trains one more segment


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every number of devices that this machine has."""
    counts = [count for count in DEVICES if len(jax.devices()) % count == 0]
    fields = FIELDS
    if quick:
        counts = counts[:2]
        fields = QUICK
    runs = {_name(count): _start(count, fields) for count in counts}
    seconds = timing.measure({name: each.step for name, each in runs.items()}, 2 if quick else 5)
    reference = runs["1 device"].state
    for name, each in runs.items():
        figures = _communication(each)
        figures["deviation"] = float(f"{deviation(each.state, reference):.2g}")
        figures["steps_per_s"] = round(each.made.sizes.env_steps / seconds[name].median_wall)
        ratio = timing.paired_ratio(seconds["1 device"].wall, seconds[name].wall)
        figures["of_one_device"] = ratio.figures()
        yield name, figures


def _name(count: int) -> str:
    return f"{count} devices" if count > 1 else "1 device"


def _start(count: int, fields: dict[str, Any]) -> _SplitRun:
    made = setup.make_run(TASK, data_parallel=count, **fields)
    train = made.start()
    compiled = made.learner.compile(train)
    for _ in range(2):
        train, _ = compiled.segment(train)
    programs = (compiled.collect, compiled.learn)
    return _SplitRun(
        made=made,
        state=jax.device_get(train.learner.state),
        collectives=[each for program in programs for each in collectives(program.as_text())],
        step=setup.make_stepper(compiled.segment, train),
    )


def _communication(split_run: _SplitRun) -> dict[str, Any]:
    """Collectives of a segment, and those of an update: the ones that run in every update."""
    updates = split_run.made.sizes.updates
    all_collectives = split_run.collectives
    of_updates = [c for c in all_collectives if c.times >= updates and c.times % updates == 0]
    all_reduces = sum(c.times for c in of_updates if c.kind == "all-reduce")
    return {
        "all_reduces_per_update": all_reduces / updates,
        "bytes_per_update": sum(c.bytes * c.times for c in of_updates) // updates,
        "collectives_per_segment": sum(c.times for c in all_collectives),
    }


def deviation(state: PyTree, reference: PyTree) -> float:
    """The largest ‖a − b‖ / ‖b‖ over the parameters."""

    def relative(a: Any, b: Any) -> float:
        a = np.ravel(a).astype(np.float64)
        b = np.ravel(b).astype(np.float64)
        norm = float(np.linalg.norm(b))
        if not norm:
            return 0.0
        return float(np.linalg.norm(a - b)) / norm

    return max(map(relative, jax.tree.leaves(state), jax.tree.leaves(reference)))


_OPERATION = re.compile(
    r"= (\(?.*?\)?) "
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(pred|s8|u8|bf16|f16|s32|u32|f32|s64|u64|f64)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|%([\w.\-]+))"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


def collectives(hlo: str) -> Iterator[Collective]:
    """The collectives in the text of a compiled program, with how often each runs."""
    bodies: dict[str, list[str]] = {}
    name = ""
    entry = ""
    for line in hlo.splitlines():
        begins = _COMPUTATION.match(line)
        if begins and not line.startswith(" "):
            name = begins[1]
            bodies[name] = []
            if line.startswith("ENTRY"):
                entry = name
        elif name:
            bodies[name].append(line)
    yield from _collectives_of(bodies, entry, 1)


def _collectives_of(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    """Those of one computation, which runs ``times`` times, and of all that it calls."""
    for line in bodies.get(name, ()):
        operation = _OPERATION.search(line)
        if operation:
            yield Collective(kind=operation[2], bytes=_array_bytes(operation[1]), times=times)
            continue
        trip_count = _TRIP_COUNT.search(line)
        repeats = int(trip_count[1]) if trip_count else 1
        for group, single in _CALLED.findall(line):
            for called in (group or single).split(", "):
                yield from _collectives_of(bodies, called.lstrip("%"), times * repeats)


def _array_bytes(shapes: str) -> int:
    total = 0
    for kind, dimensions in _ARRAY.findall(shapes):
        items = int(np.prod([int(n) for n in dimensions.split(",") if n]))
        total += _ITEM_BYTES.get(kind, 4) * items
    return total
