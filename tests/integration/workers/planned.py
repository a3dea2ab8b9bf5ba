"""Bytes of a cut student and teacher on each rank. Started by ``planning/test_memory.py``."""

import sys
from pathlib import Path

import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from composer.utils import FSDP2Config, dist
from integration.workers.running import run_scenarios
from planning.measuring import SMALL, model, rows
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence
from composer_distill.teachers.sharding import local


def fsdp2(folder):
    plan = SMALL
    student, teacher = HuggingFaceModel(model(plan.student)), HuggingFaceModel(model(plan.teacher))
    for each in (student, teacher):
        for block in each.model.model.layers:
            block._fsdp_wrap = True
    data = rows(plan)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, foreach=True)
    trainer = Trainer(
        model=student,
        train_dataloader=DataLoader(data, batch_size=2, sampler=dist.get_sampler(data)),
        max_duration="1ba",
        optimizers=optimizer,
        algorithms=[Distillation(teacher, KLDivergence(1.0), teacher_sharding="sharded")],
        parallelism_config={"fsdp": FSDP2Config()},
        progress_bar=False,
    )
    trainer.fit()
    states = [v for state in optimizer.state.values() for v in state.values()]
    return {
        "student's weights": bytes_of(trainer.state.model.parameters()),
        "teacher's weights": bytes_of(teacher.parameters()),
        "optimizer": bytes_of(states),
    }


def bytes_of(tensors):
    return sum(local(tensor).nbytes for tensor in tensors)


if __name__ == "__main__":
    run_scenarios([fsdp2], Path(sys.argv[1]), ("The _fsdp_wrap attribute will be removed",))
