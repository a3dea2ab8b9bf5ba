from types import SimpleNamespace

import pytest
import torch
from composer.core import Time, Timestamp
from torch import nn

from composer_distill import Distillation, KLDivergence
from composer_distill.teachers import Teacher
from composer_distill.terms.panel import TeacherPanel


@pytest.fixture
def moves(monkeypatch):
    """Replace the moves of weights by a note of each."""
    made = []
    monkeypatch.setattr(Teacher, "to_host", lambda teacher: made.append("leaves"))
    monkeypatch.setattr(Teacher, "place", lambda teacher, device: made.append(str(device)))
    return made


def on_gpu(panel):
    for source in panel.sources:
        source._device = torch.device("cuda")


def test_teachers_leave_the_device_once_and_come_back_once(moves):
    panel = TeacherPanel([Teacher(nn.Linear(2, 2)), Teacher(nn.Linear(2, 2))], None, 0, "logits")
    on_gpu(panel)
    panel.settle()
    assert moves == []
    panel.leave()
    panel.leave()
    assert moves == ["leaves", "leaves"]
    panel.settle()
    panel.settle()
    assert moves == ["leaves", "leaves", "cuda", "cuda"]


@pytest.mark.parametrize(
    ("batch", "eval_teachers", "expected"),
    [(0, False, []), (3, False, []), (6, False, ["leaves"]), (6, True, [])],
    ids=["before the window", "inside", "after", "after, but they evaluate"],
)
def test_teachers_leave_the_device_when_the_window_is_over(moves, batch, eval_teachers, expected):
    algorithm = Distillation(
        nn.Linear(2, 2),
        KLDivergence(),
        start_dur="2ba",
        end_dur="5ba",
        eval_teachers=eval_teachers,
    )
    on_gpu(algorithm._events._panel)
    state = SimpleNamespace(
        timestamp=Timestamp(batch=batch), max_duration=Time(10, "ba"), dataloader_len=None
    )
    algorithm._events._start_pass(state, None)
    assert moves == expected
