import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _as_many_threads_as_asked_for():
    """One thread, which small tensors want, unless OMP_NUM_THREADS says otherwise."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
