"""Every Python block of the README and of the pages in docs runs, as a reader would run it."""

import multiprocessing
import re
from pathlib import Path

import boto3
import object_store
import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from safetensors.torch import save_file
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForMaskedLM

ROOT = Path(__file__).parent.parent
# A process group and a patched torch; a temporary folder of Composer's that nobody removes
LEAVES_TRACES = ("how-to-fsdp", "how-to-resume")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def classifier():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return ComposerClassifier(module, num_classes=10)


def dataloader():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(32, 1, 8, 8, generator=generator)
    return DataLoader(
        TensorDataset(images, torch.randint(10, (32,), generator=generator)), batch_size=8
    )


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What a reader of the pages has at hand: models, data and a teacher's checkpoint."""
    monkeypatch.chdir(tmp_path)
    teacher = classifier()
    trainer = Trainer(
        model=teacher,
        optimizers=torch.optim.SGD(teacher.parameters(), lr=0.1),
        train_dataloader=dataloader(),
        max_duration="1ba",
    )
    trainer.save_checkpoint("./path/to/weights.pt")
    trainer.close()
    save_file(classifier().state_dict(), "./path/to/weights.safetensors")
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
    BertForMaskedLM(config).save_pretrained("./path/to/folder")
    return {
        "teacher": teacher,
        "second_teacher": classifier(),
        "third_teacher": classifier(),
        "student": classifier(),
        "train_dataloader": dataloader(),
        "eval_dataloader": dataloader(),
    }


@pytest.fixture
def store(names, tmp_path, monkeypatch):
    """The teacher's checkpoint in an object store, a server of S3's protocol on this machine."""
    with object_store.serving() as address:
        object_store.use(address, tmp_path / "cache", monkeypatch)
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="checkpoints")
        client.upload_file("./path/to/weights.pt", "checkpoints", "run/latest-rank0.pt")
        client.close()
        yield


def run_blocks(page, names):
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(ROOT)).parse(page)
    document.namespace.update(names)
    for example in document.examples():
        example.evaluate()


# Composer's own, whenever its FSDP2Config is made
@pytest.mark.filterwarnings("ignore:FSDP2 Config/APIs are experimental")
# From Python 3.12 on, whenever a process with threads forks
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, names, request):
    if page.stem == "how-to-object-store":
        request.getfixturevalue("store")
    if page.stem in LEAVES_TRACES:
        process = multiprocessing.get_context("fork").Process(target=run_blocks, args=(page, names))
        process.start()
        process.join()
        assert process.exitcode == 0
    else:
        run_blocks(page, names)


def test_the_continuous_integration_runs_the_commands_of_the_readme():
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    assert "pip install -e '.[test]' && pytest" in readme
    assert "pip install -q -e '.[test]' && pytest" in script
    assert "composer-distill demo" in readme
    assert "composer-distill demo --fast" in script


def test_the_continuous_integration_runs_a_part_as_another_processor_rounds():
    page, script = (ROOT / "docs/contributing.md").read_text(), (ROOT / ".ci/run").read_text()
    assert re.search(r"^ATEN_CPU_CAPABILITY=(avx2|default) OMP_NUM_THREADS=2 pytest ", script, re.M)
    assert "for capability in avx2 default; do" in page
    assert "ATEN_CPU_CAPABILITY=$capability OMP_NUM_THREADS=$threads pytest" in page
