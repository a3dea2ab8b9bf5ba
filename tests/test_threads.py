"""Whole chunks over threads: nothing changes but who computes."""

import os
import threading

import pytest
import torch

from composer_distill.losses import KLDivergence
from composer_distill.threads import second_level_cache, spread


@pytest.fixture
def threads():
    """Set torch's threads, and set them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_come_in_order_and_each_thread_computes_alone(threads):
    threads(3)

    started = [threading.Event() for _ in range(4)]

    def work(piece):
        started[piece].set()
        if piece < 2:  # the first two end after the third has begun
            assert started[2].wait(60)
        return piece, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()

    found = spread(work, range(4), 3)
    assert [one[:3] for one in found] == [(piece, 1, False) for piece in range(4)]
    assert threading.get_ident() not in {one[3] for one in found}
    assert torch.get_num_threads() == 3


def test_one_piece_or_one_thread_stays_where_it_is():
    here = threading.get_ident()
    for pieces, count in (([0], 3), ([0, 1], 1), ([], 2)):
        assert set(spread(lambda piece: threading.get_ident(), pieces, count)) <= {here}


def test_an_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        spread(lambda piece: 1 / piece, [1, 0, 2], 2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own():
    spread(str, [1, 2], 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if spread(str, [1, 2], 2) == ["1", "2"] else 1)
    ended: list[int] = []
    waiter = threading.Thread(target=lambda: ended.append(os.waitpid(child, 0)[1]))
    waiter.start()
    waiter.join(30)
    done = bool(ended)
    if not done:
        os.kill(child, 9)
    waiter.join()
    assert done, "the child waits for threads that it does not have"
    assert ended == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_a_loss_is_the_same_on_any_number_of_threads(threads, monkeypatch, masked, dtype):
    monkeypatch.setattr("composer_distill.losses.kernel._CPU_ENTRIES", 200)
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 40, 70, generator=generator).to(dtype).unbind()
    student[3, 5] = teacher[3, 5] = -torch.inf
    mask = torch.arange(40) % 3 > 0 if masked else None
    found = []
    for count in (1, 2, 3):
        threads(count)
        leaf = student.clone().requires_grad_()
        value = KLDivergence()(leaf, teacher, mask=mask)
        value.backward()
        found.append((value.detach(), leaf.grad))
        with torch.inference_mode():
            torch.testing.assert_close(KLDivergence()(student, teacher, mask=mask), value.detach())
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize(
    ("said", "bytes_"), [(2**21, 2**21), (0, 2**20), (-1, 2**20), (2**15, 2**19), (2**26, 2**22)]
)
def test_the_cache_of_a_core_is_what_the_system_says_within_bounds(monkeypatch, said, bytes_):
    monkeypatch.setattr(os, "sysconf", lambda name: said)
    assert second_level_cache() == bytes_


@pytest.mark.parametrize("error", [AttributeError, OSError, ValueError])
def test_a_system_that_names_no_cache_has_one_of_a_mebibyte(monkeypatch, error):
    def refuse(name):
        raise error(name)

    monkeypatch.setattr(os, "sysconf", refuse)
    assert second_level_cache() == 2**20
