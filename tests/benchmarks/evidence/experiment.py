"""An experiment of the evidence: its rows for each seed, kept as JSON after every run.

A run that stands in the JSON is not repeated, so that an interrupted experiment goes on where it
stopped.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from matplotlib.figure import Figure

from composer_distill import __version__
from tests.benchmarks.evidence import runs

Document = dict[str, Any]
_PACKAGES = ("mosaicml", "torch", "scikit-learn", "numpy")


class Setting(Protocol):
    """All that a run depends on, beside its seed."""

    def plain(self) -> dict[str, Any]:
        """Return the setting as JSON holds it, with the names of its ``teachers``."""
        ...


class OfOneTeacher:
    """A setting, as a dataclass, whose run has one teacher that files call by a name."""

    @property
    def teacher(self) -> str:
        """What files and results call the teacher."""
        raise NotImplementedError

    def plain(self) -> dict[str, Any]:
        """Return the setting as JSON holds it."""
        return asdict(cast(Any, self)) | {"teachers": [self.teacher]}


Rows = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how it is shown.

    Args:
        name: Of its files and its page.
        rows: The settings of one seed by the names that the table gives them.
        table: The Markdown that its page shows, from its JSON alone.
        draw: Its picture, from its JSON alone.
        run: Trains a student in a setting with a seed, and returns what was measured. What its
            teachers have in common lies in the folder that it is given, with a record of each at
            ``teachers/NAME.json``.
        reuse: Experiments whose runs may stand for its own where the settings are equal.
        seeds: How many, unless the command line says otherwise.
        scales: What the rows are made for, and what for with ``--fast``.
        packages: Those whose versions are told.
        missing: Returns what to install where data or models are missing, from the scale and the
            folder of the results; None where nothing is missing.
    """

    name: str
    rows: Callable[[int, Any], Rows]
    table: Callable[[Document], str]
    draw: Callable[[Document], Figure]
    run: Callable[[Any, int, Path], dict[str, Any]] = runs.run
    reuse: tuple[str, ...] = ()
    seeds: int = 5
    scales: tuple[Any, Any] = (runs.Scale(), runs.FAST)
    packages: tuple[str, ...] = _PACKAGES
    missing: Callable[[Any, Path], str | None] = lambda scale, folder: None


def main(experiment: Experiment, arguments: list[str] | None = None) -> None:
    """Run an experiment and write its JSON, its table and its picture."""
    parser = argparse.ArgumentParser(description=f"The evidence on {experiment.name}.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, default=experiment.seeds)
    parser.add_argument("--fast", action="store_true", help="a few steps: a smoke test, no result")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for models this small more threads only wait for each other
    scale = experiment.scales[given.fast]
    if lacking := experiment.missing(scale, given.output):
        raise SystemExit(lacking)
    document = collect(experiment, given.seeds, scale, given.output)
    text = f"{facts(document)}\n\n{experiment.table(document)}\n"
    (given.output / f"{experiment.name}.md").write_text(text, encoding="utf-8")
    experiment.draw(document).savefig(given.output / f"evidence-{experiment.name}.png", dpi=130)
    print(text)


def collect(experiment: Experiment, seeds: int, scale: Any, folder: Path) -> Document:
    """Return the experiment's document, after training what is not yet in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"{experiment.name}.json"
    versions = _versions(experiment.packages)
    known = _known([*(folder / f"{name}.json" for name in experiment.reuse), own], versions)
    wanted = [
        (name, seed, setting)
        for seed in range(1, seeds + 1)
        for name, setting in experiment.rows(seed, scale).items()
    ]
    for name, seed, setting in wanted:
        key = _key(seed, setting.plain())
        if key not in known:
            print(f"{experiment.name}, seed {seed} of {seeds}: {name}", flush=True)
            known[key] = experiment.run(setting, seed, folder)
            _save(own, wanted, known, versions)
    _save(own, wanted, known, versions)
    return load(own)


def load(path: Path) -> Document:
    """Return the document at ``path``."""
    return json.loads(path.read_text(encoding="utf-8"))


def facts(document: Document) -> str:
    """Return the line that says when, where and with what the numbers were measured."""
    dates = sorted({run["date"] for run in document["runs"]})
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    return f"Measured on {' and '.join(dates)} on {document['machine']}; {versions}."


def _known(paths: list[Path], versions: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return what the documents at ``paths`` hold, by setting and seed."""
    known: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.exists():
            document = load(path)
            if (document["machine"], document["versions"]) != (_machine(), versions):
                raise SystemExit(
                    f"{path} was measured on another machine or with other versions. "
                    "Give another --output."
                )
            for entry in document["runs"]:
                key = _key(entry["seed"], entry["setting"])
                known[key] = {k: v for k, v in entry.items() if k not in ("row", "seed", "setting")}
    return known


def _key(seed: int, setting: dict[str, Any]) -> str:
    return json.dumps([seed, setting], sort_keys=True)


def _save(
    path: Path,
    wanted: list[tuple[str, int, Setting]],
    known: dict[str, Any],
    versions: dict[str, str],
) -> None:
    """Write the document."""
    runs = []
    for name, seed, setting in wanted:
        entry = known.get(_key(seed, setting.plain()))
        if entry is not None:
            runs.append({"row": name, "seed": seed, **entry, "setting": setting.plain()})
    names = sorted({name for entry in runs for name in entry["setting"]["teachers"]})
    records = {name: load(path.parent / "teachers" / f"{name}.json") for name in names}
    teachers = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in records.items()]
    parts = [
        f'"experiment": {json.dumps(path.stem)}',
        f'"machine": {json.dumps(_machine())}',
        f'"versions": {json.dumps(versions)}',
        f'"teachers": {_block("{", teachers, "}")}',
        f'"runs": {_block("[", list(map(json.dumps, runs)), "]")}',
    ]
    path.write_text(f"{_block('{', parts, '}')}\n", encoding="utf-8")


def _block(opening: str, lines: list[str], closing: str) -> str:
    """Return JSON with one item a line, so that changes are seen line by line."""
    return "\n".join([opening, ",\n".join(lines), closing])


def _machine() -> str:
    """Return the kind of machine, not its name."""
    return f"{_processor()}, {os.cpu_count()} cores, shared with other work, one thread used"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {
        "composer-distill": __version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
