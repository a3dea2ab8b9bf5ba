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

from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.utils.builders import build_composer_model
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.foundry.processes import distilled
from tests.foundry.test_models import by_hand, hf, logits_of
from tests.foundry.world import LENGTH, MPT, finetuning, text

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


@pytest.mark.parametrize("kind", ["mpt", "hf"])
def test_a_student_of_mixed_devices_is_cut(two, kind):
    """One rank makes its weights and the other has none until FSDP gives it a share."""
    found = [two(f"{kind} mixed 2", rank) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["kd"] == pytest.approx(two(f"{kind} 2", 0)["kd"], rel=1e-5)


@pytest.mark.parametrize("kind", ["mpt", "hf"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_a_student_of_meta_learns_what_a_hand_computes(home, two, kind, version):
    """Its weights are first made where FSDP cuts it; a teacher on meta is whole all the same."""
    found = two(f"{kind} meta {version}", 0)
    assert found["kd"] == two(f"{kind} meta {version}", 1)["kd"]
    tokenizer = AutoTokenizer.from_pretrained(home["tokenizer"], model_max_length=LENGTH)

    def made(model, weights):
        config = {k: v for k, v in model.items() if k != "name"}
        built = build_composer_model(name=model["name"], cfg=config, tokenizer=tokenizer)
        told = built.load_state_dict(weights, strict=False)
        assert not told.unexpected_keys
        return built

    rows = text(home["rows"]) if kind == "mpt" else finetuning(home["pairs"])
    batch = next(iter(build_dataloader(rows, tokenizer, 4).dataloader))
    student = MPT if kind == "mpt" else hf(home["student"], pretrained=False)
    kept = torch.load(home["mpt"], weights_only=False)["state"]["model"]
    teachers = [
        made(MPT | {"n_layers": 2}, kept),
        LlamaForCausalLM.from_pretrained(home["teacher"]),
    ]
    target = sum(logits_of(teacher, batch) for teacher in teachers) / 2
    expected = by_hand(logits_of(made(student, found["weights"]), batch), target, batch["labels"])
    assert expected > 0.01
    assert found["kd"] == pytest.approx([expected], rel=1e-5)
