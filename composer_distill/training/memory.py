"""Running out of memory, told to the other ranks as Composer tells it."""

import torch
from composer.core import State
from composer.trainer.trainer import OOM_FOUND_ON_OTHER_RANK
from composer.utils import dist


def agree_on_memory(state: State) -> None:
    """Take part in Composer's own question whether any rank ran out of memory.

    With automatic microbatching Composer asks it after the student's forward, before the teachers
    answer. A rank whose teacher runs out of memory goes to that question while the others would go
    on to reduce gradients; so they ask it here once more, after the teachers.

    Raises:
        RuntimeError: The one by which Composer restarts the batch, if another rank ran out.
    """
    if not state.auto_microbatching:
        return
    found, finished = (
        state.device.tensor_to_device(torch.zeros(1, dtype=torch.uint8)) for _ in range(2)
    )
    dist.all_reduce(found, reduce_operation="MAX")
    dist.all_reduce(finished, reduce_operation="MIN")
    if found.item() == 1:
        raise RuntimeError(OOM_FOUND_ON_OTHER_RANK)
