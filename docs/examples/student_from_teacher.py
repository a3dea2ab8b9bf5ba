"""Make a small language model of a large one's layers, then distil it.

A GPT-2 of six layers reads CPython's own documentation, character by character. Four students of
two layers are then trained on the same batches for a few steps: with random first weights or with
the teacher's first and last layer, each alone and distilled by the logits.

    pip install '.[nlp]'  # in a clone of the repository
    python docs/examples/student_from_teacher.py

Text, model and training are those of ``causal_language_model.py``, which lies beside it.
"""

import argparse

from causal_language_model import load_text, make_model, nats, train
from composer.models import HuggingFaceModel

from composer_distill import Distillation, KLDivergence, student_from_teacher


def main(arguments: list[str] | None = None) -> None:
    """Train the teacher, then each student from random and from copied weights."""
    parser = argparse.ArgumentParser(description="Make a student of its teacher's layers.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="too short to be a result")
    given = parser.parse_args(arguments)
    teacher_steps, steps, width = (20, 5, 32) if given.fast else (800, 200, 64)
    text, held_out, vocabulary = load_text()

    def row(name: str, model: HuggingFaceModel, seconds: float) -> None:
        print(f"{name:<28} {nats(model, held_out):.3f} nats a character  {seconds:6.1f} CPU s")

    teacher = make_model(vocabulary, layers=6, width=width, seed=0)
    row("teacher", teacher, train(teacher, text, teacher_steps, seed=0))
    copied = HuggingFaceModel(student_from_teacher(teacher, layers=2))
    row("its two layers, untrained", copied, 0.0)
    for origin in ("random", "copied"):
        for distilled in (False, True):
            student = make_model(vocabulary, layers=2, width=width, seed=given.seed)
            if origin == "copied":
                student = HuggingFaceModel(student_from_teacher(teacher, layers=2))
            loss = KLDivergence(temperature=1.0)
            term = Distillation(teacher, loss, 1.0, org_loss_weight=0.0) if distilled else None
            seconds = train(student, text, steps, given.seed, term)
            row(f"{origin}, {'distilled' if distilled else 'alone'}", student, seconds)


if __name__ == "__main__":
    main()
