"""What is loaded when: by the modules that a fresh process holds, never by the clock."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import save

import composer_distill

# Stands in for an environment without Composer: whoever asks for it is told that it is not there
ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
WITHOUT_COMPOSER = ABSENT.format(absent={"composer", "torchmetrics", "tqdm"})


def python(code, *arguments, status=0):
    """Return what a fresh process prints."""
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == status, run.stdout + run.stderr
    return run.stdout


def loaded(code, *names, status=0):
    """Return which of some packages a fresh process holds after it ran ``code``."""
    ask = f"print('held', *({set(names)!r} & set(sys.modules)))"
    wrapped = f"import sys\ntry:\n    {code}\nfinally:\n    {ask}"
    last = python(wrapped, status=status).splitlines()[-1]
    return set(last.split()[1:])


def test_the_package_itself_loads_nothing():
    code = "import composer_distill; composer_distill.__version__; dir(composer_distill)"
    assert loaded(code, "torch", "numpy", "composer", "transformers") == set()


def test_a_loss_needs_torch_alone():
    code = "from composer_distill import KLDivergence; KLDivergence()"
    assert loaded(code, "torch", "composer", "transformers", "torchmetrics") == {"torch"}


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["demo", "--help"], 0),
        (["inspect", "--help"], 0),
        (["plan", "--help"], 0),
        (["plan", "--student", "1b", "--teacher", "8b", "--gpus", "8"], 0),
        (["plan", "--student", "9b", "--teacher", "8b", "--gpus", "8"], 2),
        ([], 2),
        (["--mistyped"], 2),
        (["demo", "--seeds", "none"], 2),
        (["inspect"], 2),
        (["demo", "--output", "/dev/null/inside"], 2),
    ],
)
def test_the_command_line_answers_without_torch_and_composer(arguments, status):
    code = f"from composer_distill.cli import main; main({arguments!r})"
    assert loaded(code, "torch", "numpy", "composer", status=status) == set()


def test_losses_work_where_composer_is_not_installed():
    code = """
import torch
from composer_distill import KLDivergence, all_positions, loss_positions
from composer_distill import losses
student = torch.randn(4, 7, requires_grad=True)
loss = KLDivergence(temperature=2.0)
loss(student, torch.randn(4, 7)).backward()
assert student.grad is not None
assert all(getattr(losses, name) for name in losses.__all__)
loss_positions({"labels": torch.ones(1, 3, dtype=torch.long)})
print("worked")
"""
    assert python(WITHOUT_COMPOSER + code) == "worked\n"


def test_what_needs_composer_says_so():
    code = """
try:
    from composer_distill import Distillation
except ModuleNotFoundError as error:
    print(error)
"""
    assert "composer" in python(WITHOUT_COMPOSER + code)


INSPECT = """
from composer_distill.cli import main
for source in sys.argv[1:]:
    assert main(["inspect", source]) == 0
sys.stderr = sys.stdout
main(["inspect", "s3://bucket/a.pt"])
"""


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage")
def test_inspect_needs_no_composer_for_local_files(tmp_path):
    weights = {"weight": torch.zeros(2, 3)}
    torch.save(weights, tmp_path / "zip.pt")
    torch.save(weights, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "a.safetensors")
    (tmp_path / "hf").mkdir()
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text("{}")
    save({"state": {"model": weights}}, checkpoint_id=tmp_path / "sharded", no_dist=True)
    subprocess.run(["gzip", "-k", tmp_path / "zip.pt"], check=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    paths = [str(tmp_path / name) for name in names]
    said = python(WITHOUT_COMPOSER + INSPECT, *paths, status=2)
    assert said.count("weight  (2, 3)  float32") == len(names) == 6
    assert said.rstrip().endswith("error: PATH: No module named 'composer'")


def test_every_public_name_has_a_home_and_is_typed():
    tree = ast.parse(Path(composer_distill.__file__).read_text())
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {
        alias.name: node.module.removeprefix("composer_distill.")
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == composer_distill._HOMES
    assert sorted(homes) == sorted(composer_distill.__all__)
    assert set(composer_distill.__all__) <= set(dir(composer_distill))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'composer_distill' has no attribute 'Distilation'"):
        composer_distill.Distilation  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Distilation'"):
        exec("from composer_distill import Distilation")
