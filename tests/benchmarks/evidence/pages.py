"""The pages of the evidence: each shows its committed JSON between two marker comments.

``python -m tests.benchmarks.evidence.pages --output DIR`` brings the numbers, tables and pictures
of ``DIR`` to ``docs``.
"""

import argparse
import shutil
from pathlib import Path

from tests.benchmarks.evidence import (
    classes,
    copied_blocks,
    copied_layers,
    cut_encoder_decoder,
    cut_students,
    dark_knowledge,
    efficiency,
    expect,
    fashion,
    feature_images,
    feature_text,
    few_labels,
    other_task,
    other_teachers,
    poor_teacher,
    prune_recover,
    sampling,
    scheduling,
    teacher_windows,
    temperature,
    tuning,
)
from tests.benchmarks.evidence.experiment import Document, Experiment, facts, load

DOCS = Path(__file__).parents[3] / "docs"
EXPERIMENTS = [
    module.EXPERIMENT
    for module in (
        efficiency,
        sampling,
        scheduling,
        poor_teacher,
        dark_knowledge,
        few_labels,
        temperature,
        other_teachers,
        teacher_windows,
        copied_layers,
        copied_blocks,
        cut_students,
        cut_encoder_decoder,
        fashion,
        prune_recover,
        other_task,
        feature_images,
        feature_text,
        classes,
        tuning,
    )
]
BEGIN, END = "<!-- from the JSON: begin -->", "<!-- from the JSON: end -->"


def render(experiment: Experiment, document: Document) -> str:
    """Return what stands between the markers."""
    return f"{BEGIN}\n\n{facts(document)}\n\n{experiment.table(document)}\n\n{END}"


def shown(page: str) -> str:
    """Return what stands between the markers of ``page``, with them."""
    return page[page.index(BEGIN) : page.index(END) + len(END)]


def main(arguments: list[str] | None = None) -> None:
    """Bring the numbers, tables and pictures that are there."""
    parser = argparse.ArgumentParser(description="Bring the evidence to the pages.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    given = parser.parse_args(arguments)
    for experiment in EXPERIMENTS:
        source = given.output / f"{experiment.name}.json"
        if source.exists():
            bring(experiment, source)
    expect.write()


def bring(experiment: Experiment, source: Path) -> None:
    """Copy an experiment's JSON, redraw its picture and rewrite its table."""
    target = DOCS / "evidence" / source.name
    shutil.copyfile(source, target)
    document = load(target)
    picture = DOCS / "images" / f"evidence-{experiment.name}.png"
    experiment.draw(document).savefig(picture, dpi=130)
    page = target.with_suffix(".md")
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(shown(text), render(experiment, document)), encoding="utf-8")


if __name__ == "__main__":
    main()
