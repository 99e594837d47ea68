"""Dividing this machine among runs."""

from __future__ import annotations

import os

import pytest

from gcp_jax.config import ConfigError
from gcp_jax.launch.backends import slots, split_machine


def gpus_of(found):
    return [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found]


def test_accelerators_are_divided_among_the_slots(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    assert gpus_of(split_machine(None, 2)) == ["2,3", "5,7"]
    assert gpus_of(split_machine(3, 1)) == ["2", "3", "5"]
    message = (
        "--max_parallel=3, but this machine has 4 accelerators, of which a run takes 2; at most 2"
    )
    with pytest.raises(ConfigError, match=message):
        split_machine(3, 2)
    with pytest.raises(ConfigError, match="a run takes 8 accelerators .* this machine has 4"):
        split_machine(None, 8)


def test_more_accelerators_than_cores_share_all_cores(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert [slot.cores for slot in split_machine(None, 1)] == [(0, 1)] * 3


def test_tpu_chips_are_shown_with_their_bounds():
    assert slots.visible_devices(["tpu:0", "tpu:1"]) == {
        "TPU_VISIBLE_CHIPS": "0,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def test_cores_are_divided_if_there_is_no_accelerator(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert [slot.cores for slot in split_machine(None, 1)] == [(0, 1), (2, 3)]
    with pytest.raises(ConfigError, match="5 cores; at most 5"):
        split_machine(6, 1)
