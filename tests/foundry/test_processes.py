"""Two processes of LLM Foundry on a CPU: whole, under FSDP1 and under FSDP2, as in one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("llmfoundry")

from tests.foundry.processes import distilled

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(home, tmp_path_factory):
    """Run all in two processes, once; return what a rank logged."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "home.json").write_text(json.dumps({k: str(v) for k, v in home.items()}))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    launched = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "composer.cli.launcher", "-n", "2"),
            *("--master_addr", "127.0.0.1", "--master_port", port),
            *("-m", "tests.foundry.processes", str(folder / "home.json"), str(folder)),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "CUDA_VISIBLE_DEVICES": "",
        },
        cwd=folder,
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
    )

    def result(name, rank):
        path = folder / f"{name}.{rank}.pt"
        assert path.exists(), launched.stdout[-4000:] + launched.stderr[-4000:]
        found = torch.load(path)
        assert "error" not in found, found["error"]
        return found

    return result


@pytest.mark.parametrize("kind", ["mpt", "hf"])
@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_a_yaml_s_run_on_two_processes_is_that_on_one(home, two, kind, version):
    one = distilled(home, kind)
    for rank in (0, 1):
        found = two(f"{kind} {version}", rank)
        for name, values in one.items():
            assert found[name] == pytest.approx(values, rel=1e-5), name
    assert len(set(one["kd"])) == 3  # the student moves


def test_a_student_of_mixed_devices_is_cut(two):
    """One rank makes its weights and the other has none until FSDP gives it a share."""
    found = [two("mixed 2", rank) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["kd"] == pytest.approx(two("mpt 2", 0)["kd"], rel=1e-5)
