"""The teachers on the evaluation sets, so that the student's numbers can be read beside theirs."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from composer.core import State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics import Metric

from composer_distill.teachers.microbatch import Compared
from composer_distill.teachers.splitting import shallow_copy
from composer_distill.telemetry.values import (
    divergence_and_entropies,
    is_classification,
    top1_agreement,
)
from composer_distill.terms.logits import LogitsTerm
from composer_distill.terms.task import IGNORED_LABEL, Task
from composer_distill.training.given import GivenBatch


class TeacherEvaluation:
    """One evaluation set: agreement and KL with the teachers, and their values of its metrics.

    All teachers that exist answer, combined by their weights as in training; each keeps a copy of
    every metric of the student's.

    Args:
        term: Knows the teachers and how to read the student's output.
    """

    def __init__(self, term: LogitsTerm) -> None:
        self._term = term
        self._given = GivenBatch()
        self._metrics: list[dict[str, Metric]] = []
        self._sums: Tensor | None = None
        self._seen = 0
        self._everyone: list[tuple[int, float]] = []  # who exists, and its share

    def start(self, state: State, logger: Logger) -> None:
        """EVAL_START: begin a set."""
        metrics = state.eval_metrics.get(str(state.dataloader_label), {})
        self._metrics = [_fresh(metrics, state) for _ in self._term.panel.teachers]
        self._everyone = self._term.panel.draw(0, everyone=True)
        self._sums, self._seen = None, 0

    def begin(self, state: State, logger: Logger) -> None:
        """EVAL_BEFORE_FORWARD: a student that changes its batch is known by a copy."""
        self._given.note(state.batch)

    def update(self, state: State, logger: Logger) -> None:
        """EVAL_AFTER_FORWARD: the teachers answer the microbatch that the student answered."""
        batch = self._given.as_given()
        if not self._everyone:
            return
        term, (view, task) = self._term, _with_labels(batch, state, self._term.reader.task)
        # Teachers answer every position, whatever is compared, for their own metrics
        microbatch = replace(term.read(view, state.outputs, task), selects=False)
        size = len(microbatch.logits)
        padding = _is_padding(state, size, self._seen)
        self._seen += size

        def watch(index: int, logits: Tensor) -> None:
            if not padding:
                self._update_metrics(index, logits, state)

        asked = replace(microbatch, view=shallow_copy(batch))
        target = term.target(self._everyone, asked, state, watch)
        term.forget()  # nothing asks for what it noted of this
        term.panel.forget()
        if microbatch.classes and not (padding or microbatch.empty):
            self._add(asked.kept, asked.keep(target))

    def _add(self, kept: Compared, target: Tensor) -> None:
        """Add a microbatch's kept positions to the sums of the set."""
        student, axis = kept.logits, kept.axis
        if not is_classification(student, axis):
            return
        agreement = top1_agreement(student, target, axis)
        kl, _, _ = divergence_and_entropies(student, target, axis)
        positions = student.numel() // student.shape[axis]
        counted = torch.stack([torch.ones_like(kl), kl, kl if agreement is None else agreement])
        counted = counted.double() * positions if kl.device.type != "mps" else counted * positions
        self._sums = counted if self._sums is None else self._sums + counted

    def finish(self, state: State) -> dict[str, float]:
        """Return the metrics of the whole set, over all ranks, at EVAL_END."""
        label = state.dataloader_label
        sums = torch.zeros(3, dtype=torch.float64) if self._sums is None else self._sums
        sums = state.device.tensor_to_device(sums)
        dist.all_reduce(sums)
        positions, kl, agreement = sums.tolist()
        results: dict[str, float] = {}
        if positions:
            results[f"metrics/{label}/teacher_agreement"] = agreement / positions
            results[f"metrics/{label}/teacher_kl"] = kl / positions
        for index, _ in self._everyone:
            metrics = self._metrics[index]
            owner = "teacher" if len(self._metrics) == 1 else f"teacher_{index}"
            for name, metric in metrics.items():
                value = metric.compute()
                if isinstance(value, Tensor) and value.numel() == 1:
                    results[f"metrics/{label}/{owner}/{name}"] = value.item()
        return results

    def _update_metrics(self, index: int, logits: Tensor, state: State) -> None:
        model: Any = state.model
        model = getattr(model, "module", model) if not hasattr(model, "update_metric") else model
        outputs = _in_place_of(state.outputs, logits)
        with get_precision_context(state.precision, state.precision_config):
            for metric in self._metrics[index].values():
                model.update_metric(shallow_copy(state.batch), outputs, metric)


def _with_labels(batch: Any, state: State, task: Task) -> tuple[Any, Task]:
    """Return a batch with its labels, and the task that tells how they are aligned.

    ``HuggingFaceModel.eval_forward`` may have taken them out of the batch, and then it has shifted
    those of a model that it takes for causal. Where the student's own loss does not shift they are
    shifted back; of the first label of each sequence nothing is left then.
    """
    model = getattr(state.model, "module", state.model)
    labels = getattr(model, "labels", None)
    if not isinstance(batch, dict) or "labels" in batch or not isinstance(labels, Tensor):
        return batch, task
    shifted = getattr(model, "shift_labels", False) or batch.get("mode") == "icl_task"
    if shifted and not task.shift and labels.ndim > 1:
        labels = torch.nn.functional.pad(labels[..., :-1], (1, 0), value=IGNORED_LABEL)
    return {**batch, "labels": labels}, replace(task, aligned=bool(shifted))


def _fresh(metrics: Mapping[str, Metric], state: State) -> dict[str, Metric]:
    copies = {name: copy.deepcopy(metric) for name, metric in metrics.items()}
    for metric in copies.values():
        metric.reset()
        state.device.module_to_device(metric)
    return copies


def _in_place_of(outputs: Any, logits: Tensor) -> Any:
    """Return an output like the student's with a teacher's logits in it."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return {**outputs, "logits": logits}
    return logits


def _is_padding(state: State, size: int, seen: int) -> bool:
    """Return whether a microbatch is nothing but the sample that fills up a sampler's last batch.

    Composer cuts that sample off, except where it is alone: then it runs the forward and leaves the
    metrics out.
    """
    sampler = getattr(state.dataloader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or size != 1:
        return False
    padding = sampler.total_size - len(sampler.dataset)  # pyright: ignore[reportArgumentType]
    padded_rank = dist.get_global_rank() >= dist.get_world_size() - padding
    return padded_rank and seen + size == sampler.num_samples
