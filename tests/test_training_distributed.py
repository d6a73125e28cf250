"""The loop on two processes: equal to one process with the joined batch, and resumed to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_ranks import METHODS, trained

pytestmark = pytest.mark.xdist_group("training_distributed")  # one worker makes the two ranks for all of them


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    subprocess.run([sys.executable, "two_ranks.py", folder], cwd=Path(__file__).parent, env=env, check=True, timeout=1800)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_a_resumed_run_is_bit_identical_on_every_rank(ranks):
    for found in ranks:
        assert found["at"] == 3
        for name, value in found["whole"].items():
            assert torch.equal(found["resumed"][name], value), name
    assert not torch.equal(ranks[0]["views"], ranks[1]["views"])  # each rank draws its own views


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one_with_the_joined_batch(ranks, name):
    one = trained(name, devices=1)
    for found in ranks:
        for key, value in one.items():
            if "extra_state" not in key and "queue" not in key:  # the queue has the same rows in another order
                torch.testing.assert_close(found[name][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", METHODS)
def test_ranks_agree(ranks, name):
    for key, value in ranks[0][name].items():
        assert torch.equal(ranks[1][name][key], value), key
