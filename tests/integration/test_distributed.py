"""One process alone is the first of one; a missing or lost host is reported in one line."""

import jax
import numpy as np
import pytest

from gcp_jax import mesh as mesh_lib
from gcp_jax.launch.cli import main
from gcp_jax.run import distributed
from gcp_jax.run.errors import HostLost

pytestmark = pytest.mark.process


def test_a_process_alone_exchanges_nothing():
    assert distributed.is_primary()
    assert distributed.count() == 1
    assert distributed.with_host_prefix("finetune") == "finetune"
    tree = {"a": jax.numpy.arange(3), "b": np.float32(2)}
    assert distributed.broadcast_from_first(tree) is tree
    assert distributed.largest(7) == 7
    fetched = distributed.fetch(tree)
    jax.tree.map(np.testing.assert_array_equal, fetched, tree)
    assert isinstance(fetched["a"], np.ndarray)
    distributed.wait("here")


@pytest.mark.parametrize("where", ["10.0.0.1:1234,2", "10.0.0.1:1234,two,0"])
def test_hosts_in_another_form_are_refused(where, capsys):
    command = ["train", "--config=experiments/configs/reach.py", f"--hosts={where}"]
    assert main.main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--hosts={where}" in said
    assert "e.g. 10.0.0.1:1234,2,0 on the first of two hosts" in said


def test_an_error_of_the_device_means_a_lost_host_only_if_there_are_several(monkeypatch):
    def fail():
        with distributed.process_group():
            raise jax.errors.JaxRuntimeError(
                "UNKNOWN: Gloo AllGather failed: Connection closed by peer\nmore"
            )

    with pytest.raises(jax.errors.JaxRuntimeError):
        fail()
    monkeypatch.setattr(distributed, "count", lambda: 2)
    message = "another host has gone .*closed by peer.; start them all again"
    with pytest.raises(HostLost, match=message):
        fail()


@pytest.mark.parametrize(
    ("seeds", "data", "on_one_host", "on_two_hosts"),
    [
        (8, 1, (8, 1, 1), (8, 1, 1)),
        (3, 1, (3, 1, 1), (1, 1, 8)),
        (1, 2, (1, 2, 1), (1, 2, 4)),
        (6, 2, (3, 2, 1), (2, 2, 2)),
    ],
)
def test_every_device_has_a_part_if_several_hosts_share_a_run(
    monkeypatch, seeds, data, on_one_host, on_two_hosts
):
    assert mesh_lib.make_mesh(seeds, data=data).devices.shape == on_one_host
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = mesh_lib.make_mesh(seeds, data=data)
    assert mesh.devices.shape == on_two_hosts
    assert mesh.axis_names == ("seed", "data", "copy")
    ids = [device.id for device in mesh.devices.swapaxes(1, 2).ravel()]
    assert ids == sorted(ids)  # the data axis within a host, copies next, seeds across hosts
