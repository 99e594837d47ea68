"""One process alone is the first of one; a host that cannot be joined, or that has gone, is told in one line."""

import jax
import numpy as np
import pytest

from gcp_jax import mesh as mesh_lib
from gcp_jax.launch.cli import main
from gcp_jax.run import distributed


def test_alone_nothing_is_exchanged():
    assert (
        distributed.is_primary()
        and distributed.count() == 1
        and distributed.with_host_prefix("finetune") == "finetune"
    )
    tree = {"a": jax.numpy.arange(3), "b": np.float32(2)}
    assert distributed.broadcast_from_first(tree) is tree and distributed.largest(7) == 7
    jax.tree.map(np.testing.assert_array_equal, distributed.fetch(tree), tree)
    assert isinstance(distributed.fetch(tree)["a"], np.ndarray)
    distributed.wait("here")


@pytest.mark.parametrize("where", ["10.0.0.1:1234,2", "10.0.0.1:1234,two,0"])
def test_hosts_that_are_not_told_as_expected_are_refused(where, capsys):
    command = ["train", "--config=experiments/configs/reach.py", f"--hosts={where}"]
    assert main.main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--hosts={where}" in said and "10.0.0.1:1234,2,0 say on the first of two" in said


def test_an_error_of_the_device_is_anothers_silence_only_where_there_are_others(monkeypatch):
    def fail():
        with distributed.process_group():
            raise jax.errors.JaxRuntimeError(
                "UNKNOWN: Gloo AllGather failed: Connection closed by peer\nmore"
            )

    with pytest.raises(jax.errors.JaxRuntimeError):
        fail()
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(
        distributed.HostLost, match="another host has gone .*closed by peer.; start them all again"
    ):
        fail()


@pytest.mark.parametrize(
    ("seeds", "data", "alone", "several"),
    [
        (8, 1, (8, 1, 1), (8, 1, 1)),
        (3, 1, (3, 1, 1), (1, 1, 8)),
        (1, 2, (1, 2, 1), (1, 2, 4)),
        (6, 2, (3, 2, 1), (2, 2, 2)),
    ],
)
def test_every_device_has_a_part_where_several_hosts_share_a_run(
    monkeypatch, seeds, data, alone, several
):
    assert mesh_lib.make_mesh(seeds, data=data).devices.shape == alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = mesh_lib.make_mesh(seeds, data=data)
    assert mesh.devices.shape == several and mesh.axis_names == ("seed", "data", "copy")
    flat = [device.id for device in mesh.devices.swapaxes(1, 2).ravel()]
    assert flat == sorted(flat)  # the data axis within a host, copies next, seeds across hosts
