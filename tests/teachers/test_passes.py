"""What a process takes of a loader."""

import pytest
from composer.utils import dist
from torch.utils.data import DataLoader

from composer_distill.teachers.passes import share, shown_share


class Nothing:
    """A writer that took nothing."""

    positions = bytes = 0


@pytest.mark.parametrize(("rank", "ours"), [(0, [0, 2, 4]), (1, [1, 3])])
def test_each_process_takes_its_batches_and_counts_to_their_number(rank, ours, monkeypatch, capsys):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_global_rank", lambda: rank)
    loader = DataLoader(list(range(5)), batch_size=1)
    assert [int(batch) for batch in share(loader)] == ours
    assert [int(batch) for batch in shown_share(loader, Nothing())] == ours
    assert f"{len(ours)}/{len(ours)}" in capsys.readouterr().err
