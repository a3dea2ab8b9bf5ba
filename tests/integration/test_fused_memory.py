"""What the fused loss spares where FSDP cuts the student over two processes."""

import pytest

pytest.importorskip("transformers")
from integration.test_processes import launch
from integration.workers import fused_memory


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch("fused_memory.py", tmp_path_factory.mktemp("fused_memory"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("version", ["fsdp1", "fsdp2"])
def test_no_logits_are_whole_but_the_student_s_own(two, version, head, rank):
    found, logits = two(version, rank)[head], fused_memory.logits_bytes()
    print({name: {k: f"{v:,}" for k, v in each.items()} for name, each in found.items()})
    alone, fused, unfused = (found[name] for name in ("alone", "fused", "logits"))
    # as many tensors of that size as a student makes that nobody teaches
    assert fused["whole"] == alone["whole"] >= 2 * fused_memory.BATCHES
    assert unfused["whole"] >= alone["whole"] + 2 * fused_memory.BATCHES
    # weights are gathered, and gradients of heads kept; what grows with the texts is spared
    assert fused["peak"] < alone["peak"] + 0.5 * logits
    assert unfused["peak"] > fused["peak"] + logits
