"""The batches that a process answers when a cache is written, once for each view."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import tqdm
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DistributedSampler

from composer_distill.caching.keys import read_batch
from composer_distill.caching.writer import PartWriter
from composer_distill.teachers.outputs import LABEL_KEYS


def passes(data: Any, views: int | None) -> Iterator[Any]:
    """Give the data once for each view.

    Args:
        data: A loader, or a ``DataSpec`` of one.
        views: How many views there are; None where samples have but one.

    Raises:
        ValueError: If the data set can't be told which view it is to show, or doesn't keep to it.
    """
    if views is None:
        yield data
        return
    loader = data.dataloader if isinstance(data, DataSpec) else data
    set_view = getattr(getattr(loader, "dataset", None), "set_view", None)
    if not callable(set_view):
        raise ValueError(
            f"views={views} needs a data set whose augmentation is a function of sample and view, "
            "and one that has set_view(view) to say so: an augmentation that draws anew each time "
            "shows the student views that no teacher answered. Seed it with (sample, view)."
        )
    for view in range(views):
        set_view(view)
        first, again = (next(iter(loader), None) for _ in range(2))
        if first is None or not _same(first, again):
            raise ValueError(
                f"views={views}: the data set's first batch is another one when it is asked for "
                f"again, at view {view}, so that its augmentation is no function of sample and "
                "view. Seed it with both, and do not shuffle."
            )
        yield data


def _same(batch: Any, other: Any) -> bool:
    one, two = (read_batch(x, None, LABEL_KEYS).keys for x in (batch, other))
    return one.shape == two.shape and bool((one == two).all())


def share(loader: Any) -> Iterator[Any]:
    """Give the batches of a loader that this process answers."""
    first, step = _cut_by(loader)
    return islice(loader, first, None, step)


def shown_share(loader: Any, writer: PartWriter) -> Iterator[Any]:
    """Give what :func:`share` gives, and show how far this process is with it."""
    first, step = _cut_by(loader)
    total = len(range(len(loader))[first::step]) if hasattr(loader, "__len__") else None
    began = time.monotonic()
    with tqdm.tqdm(total=total, unit="batch", disable=dist.get_local_rank() != 0) as bar:
        for batch in share(loader):
            yield batch
            seconds = max(time.monotonic() - began, 1e-6)
            bar.set_postfix_str(
                f"{writer.positions / seconds:,.0f} positions/s, {writer.bytes / 1e6:,.1f} MB"
            )
            bar.update()


def _cut_by(loader: Any) -> tuple[int, int]:
    """Return which batch of a loader is this process's first, and which of those after it."""
    sampler = getattr(loader, "sampler", None)
    streams = hasattr(getattr(loader, "dataset", None), "streams")  # it cuts itself by rank
    if isinstance(sampler, DistributedSampler) or streams:
        return 0, 1
    return dist.get_global_rank(), dist.get_world_size()
