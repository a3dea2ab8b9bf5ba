from types import SimpleNamespace

import pytest
from composer.devices import DeviceCPU
from composer.trainer.trainer import OOM_FOUND_ON_OTHER_RANK
from composer.utils import dist

from composer_distill.training.memory import agree_on_memory


@pytest.mark.parametrize("elsewhere", [0, 1])
def test_a_rank_that_ran_out_of_memory_is_heard_by_the_others(monkeypatch, elsewhere):
    asked = []

    def reduce(tensor, reduce_operation="SUM"):
        asked.append(reduce_operation)
        if reduce_operation == "MAX":
            tensor.fill_(elsewhere)

    monkeypatch.setattr(dist, "all_reduce", reduce)
    state = SimpleNamespace(auto_microbatching=True, device=DeviceCPU())
    if elsewhere:
        with pytest.raises(RuntimeError, match=OOM_FOUND_ON_OTHER_RANK):
            agree_on_memory(state)
    else:
        agree_on_memory(state)
    assert asked == ["MAX", "MIN"]  # Composer's own question, in its order


def test_without_automatic_microbatching_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda *args, **kwargs: pytest.fail("asked"))
    agree_on_memory(SimpleNamespace(auto_microbatching=False))
