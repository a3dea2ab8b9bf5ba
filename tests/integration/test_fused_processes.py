"""The fused loss where FSDP cuts the student over two processes: the weights of the unfused one."""

import pytest
import torch

pytest.importorskip("transformers")
from integration.test_processes import launch, measured
from integration.workers import fused


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch("fused.py", tmp_path_factory.mktemp("fused"))


UNITS = {
    "tied": 1,
    "tied, blocks cut": 2,
    "untied": 1,
    "head cut by itself": 3,
    "shared": 1,
    "teacher cut": 2,
}


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize(
    ("version", "reference"), [("fsdp2", "fsdp2_of_logits"), ("fsdp1", "replicated")]
)
def test_a_cut_student_trains_to_the_weights_and_values_of_the_unfused_loss(
    two, version, reference, name
):
    for rank in (0, 1):
        ours, theirs = two(version, rank)[name], two(reference, rank)[name]
        torch.testing.assert_close(ours["weights"], theirs["weights"], rtol=1e-6, atol=1e-8)
        names = [each for each in theirs["log"] if measured(each)]
        assert {"distillation/agreement", "distillation/kl", "loss/train/kd"} <= set(names)
        for each in names:
            values = [value for _, value in ours["log"][each]]
            expected = pytest.approx([v for _, v in theirs["log"][each]], rel=1e-6, abs=1e-6)
            assert values == expected, each
            assert len(values) == fused.BATCHES
        assert ours["units"] == UNITS[name]
