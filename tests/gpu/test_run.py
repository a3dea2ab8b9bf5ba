"""The command that proves all on a GPU: what one part does takes no other along."""

import importlib.machinery
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
from gpu import overhead

PATH = Path(__file__).parent / "run"


@pytest.fixture
def command():
    loader = importlib.machinery.SourceFileLoader("gpu_run", str(PATH))
    spec = importlib.util.spec_from_loader("gpu_run", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


ROW = 'print(\'{"row": "%s", "ms": 1}\', flush=True); '
SLEEP = "import time; time.sleep(60)"
LATER = "import sys, time; time.sleep(1.5); open(sys.argv[-1], 'w').close()"


def test_a_part_that_fails_and_one_that_hangs_leave_the_others(command, monkeypatch, tmp_path):
    parts = {
        "failing": (ROW % "before the fault" + "print('why'); raise SystemExit(3)", 30),
        "hanging": (ROW % "before" + 'print(\'{"row": "ha\', flush=True); ' + SLEEP, 3.0),
        "well": (ROW % "after both" + "print('\\xff')", 30),
    }
    run = {name: (["-c", code], limit) for name, (code, limit) in parts.items()}
    monkeypatch.setattr(command, "PARTS", run)
    monkeypatch.setattr(command, "machine", lambda: {"card": "none"})
    monkeypatch.setattr(sys, "argv", ["run", "--json", str(tmp_path / "found.json")])
    assert command.main() == 1
    found = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert [part["ended"] for part in found] == ["exit 3", "over 3.0 s", "ok"]
    rows = [[row["row"] for row in part["rows"]] for part in found]
    assert rows == [["before the fault"], ["before"], ["after both"]]
    assert found[0]["last_words"] == ["why"]


@pytest.mark.parametrize(("waits", "ended"), [(True, "over 1.5 s"), (False, "ok")])
def test_no_process_of_a_part_outlives_it(command, tmp_path, waits, ended):
    witness = tmp_path / "written"
    code = (
        "import subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-c', {LATER!r}, {str(witness)!r}], "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); " + "child.wait()" * waits
    )
    assert command.within([sys.executable, "-c", code], None, 1.5) == ([], ended)
    time.sleep(3)
    assert not witness.exists()


def test_all_parts_take_eight_minutes_at_most(command):
    assert sum(limit for _, limit in command.PARTS.values()) <= 8 * 60 - 30  # for torch to start


@pytest.mark.parametrize(("told", "well"), [(4, True), (5, False)])
def test_a_batch_that_waits_for_the_device_more_than_once_fails(monkeypatch, capsys, told, well):
    def train(student, batch, algorithms):
        clock = overhead.Clock()
        clock.times, clock.told = [1.0, 1.0], told if algorithms else 3
        return clock

    monkeypatch.setattr(overhead, "train", train)
    monkeypatch.setattr(overhead, "teacher_time", lambda teacher, batch: 1.0)
    monkeypatch.setattr(overhead, "HuggingFaceModel", lambda model: model)
    assert overhead.compare("toy", lambda deep: overhead.nn.Linear(1, 1), dict) is well
    assert f'"host_synchronisations": {told - 3}' in capsys.readouterr().out
