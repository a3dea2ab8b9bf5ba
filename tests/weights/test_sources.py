"""Each source, read from a file or folder that the real tool wrote."""

import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from composer.models import HuggingFaceModel
from composer.utils import create_symlink_file
from composer.utils.compression import KNOWN_COMPRESSORS
from safetensors.torch import save_file, save_model
from torch import nn

from composer_distill.teachers import load_weights

TWO_PROCESSES = """
import sys, torch, warnings
warnings.simplefilter("ignore")
from composer import Trainer
from composer.algorithms import EMA
from composer.models import ComposerClassifier
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from composer_distill.teachers import Teacher
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def make():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    )

def train(folder, **options):
    torch.manual_seed(5)
    model = ComposerClassifier(make(), num_classes=4)
    data = TensorDataset(torch.randn(32, 16), torch.randint(0, 4, (32,)))
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data, batch_size=8, sampler=dist.get_sampler(data)),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.05),
        max_duration="1ep", save_folder=folder, progress_bar=False, **options,
    )
    trainer.fit()
    weights = {
        key: value.full_tensor() if hasattr(value, "full_tensor") else value
        for key, value in model.state_dict().items()
    }
    if dist.get_global_rank() == 0:
        torch.save(weights, f"{folder}/truth.pt")
    dist.barrier()
    # Read by both processes, one of them later than the other: nobody waits for nobody.
    marks = dist.all_gather_object(
        Teacher(make(), checkpoint=f"{folder}/latest-rank0.pt").fingerprint()
    )
    truth = Teacher(make(), checkpoint=f"{folder}/truth.pt").fingerprint()
    assert marks == [truth] * 2, (marks, truth)

train(sys.argv[1] + "/ddp")
train(sys.argv[1] + "/ema", algorithms=[EMA(half_life="2ba")])
train(
    sys.argv[1] + "/sharded",
    parallelism_config={"fsdp": FSDP2Config(state_dict_type="sharded")},
)
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Runs of two processes, with DDP and with FSDP2; both processes read what they saved."""
    folder = tmp_path_factory.mktemp("two-processes")
    script = folder / "script.py"
    script.write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-addr=127.0.0.1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    result = subprocess.run(
        [*command, str(script), str(folder)],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def is_truth(model, folder):
    truth = torch.load(folder / "truth.pt", weights_only=True)
    state = model.state_dict()
    return truth.keys() == state.keys() and all(torch.equal(truth[k], state[k]) for k in truth)


def save_sharded(state, folder):
    with warnings.catch_warnings():  # torch warns that it saves from one process
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)


@pytest.mark.parametrize("name", ["ep1-ba2", "latest-rank0.pt"])
def test_sharded_checkpoint_of_two_processes_in_one(zoo, two_processes, name):
    folder = two_processes / "sharded"
    assert len(list((folder / "ep1-ba2").glob("*.distcp"))) == 2
    wrapped, bare = zoo.classifier(), zoo.net()
    load_weights(wrapped, folder / name)
    load_weights(bare, folder / name)
    assert is_truth(wrapped, folder)
    assert zoo.same(wrapped.module, bare)


def test_checkpoint_of_a_run_with_ddp(zoo, two_processes):
    fresh = zoo.classifier()
    load_weights(fresh, two_processes / "ddp" / "latest-rank0.pt")
    assert is_truth(fresh, two_processes / "ddp")


def test_both_weights_of_a_run_with_ema_and_ddp(zoo, two_processes):
    """The average stands under the names of the wrapped model."""
    path = two_processes / "ema" / "latest-rank0.pt"
    average, trained = zoo.classifier(), zoo.classifier()
    load_weights(average, path, ema=True)
    load_weights(trained, path, ema=False)
    assert is_truth(average, two_processes / "ema")
    ema = dict(torch.load(path, weights_only=False)["state"]["algorithms"])["EMA"]
    beside = ema["ema_model"]["named_parameters_dict"]
    assert all(key.startswith("module.module.") for key in beside)
    assert not zoo.same(average, trained)
    for key, value in trained.named_parameters():
        assert torch.equal(value, beside[f"module.{key}"])


def test_a_folder_of_sharded_checkpoints_asks_for_one(zoo, two_processes):
    with pytest.raises(ValueError, match=r"name one of the checkpoints in it .*ep1-ba2"):
        load_weights(zoo.net(), two_processes / "sharded")


@pytest.mark.parametrize("wrap", [dict, lambda w: {"model": w}, lambda w: {"state": {"model": w}}])
def test_sharded_folder_of_plain_dcp(zoo, tmp_path, wrap):
    net = zoo.net()
    save_sharded(wrap(net.state_dict()), tmp_path / "dcp")
    fresh = zoo.net()
    load_weights(fresh, tmp_path / "dcp")
    assert zoo.same(fresh, net)


@pytest.fixture
def dcp_folder(zoo, tmp_path):
    folder = tmp_path / "dcp"
    save_sharded({"state": {"model": zoo.net().state_dict()}}, folder)
    return folder


@pytest.mark.parametrize("payload", ["Payload", "EvalPayload"])
def test_a_payload_in_shard_metadata(zoo, dcp_folder, witness, payload):
    with (dcp_folder / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    metadata.planner_data = {"planted": getattr(zoo, payload)(witness)}
    (dcp_folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        ValueError, match=r"the expert: .*it asks for (posix\.system|builtins\.eval)"
    ):
        load_weights(zoo.net(), dcp_folder, name="the expert")


@pytest.mark.parametrize(
    "name", ["Metadata.__init__", "torch.serialization.load", "pickle.loads", "os.system"]
)
def test_shard_metadata_reaches_nothing_through_dots(zoo, dcp_folder, name):
    module = b"torch.distributed.checkpoint.metadata"
    # Protocol 4 looks names with dots up attribute by attribute.
    stack = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)])
    (dcp_folder / ".metadata").write_bytes(stack + name.encode() + b"\x93.")
    with pytest.raises(ValueError, match=r"it asks for torch\.distributed.checkpoint.metadata\."):
        load_weights(zoo.net(), dcp_folder)


def test_a_payload_in_a_shard(zoo, dcp_folder, witness):
    """The piece of a weight is replaced by a payload of the same length."""
    path = dcp_folder / ".metadata"
    with path.open("rb") as file:
        metadata = pickle.load(file)
    torch.save({"planted": zoo.Payload(witness)}, dcp_folder / "evil.distcp")
    size = (dcp_folder / "evil.distcp").stat().st_size
    for info in metadata.storage_data.values():
        info.relative_path, info.offset, info.length = "evil.distcp", 0, size
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"it asks for posix\.system"):
        load_weights(zoo.net(), dcp_folder)


@pytest.mark.parametrize("target", ["../outside.distcp", "/etc/hostname"])
def test_shards_stay_in_their_folder(zoo, dcp_folder, target):
    path = dcp_folder / ".metadata"
    shutil.copy(dcp_folder / "__0_0.distcp", dcp_folder.parent / "outside.distcp")
    with path.open("rb") as file:
        metadata = pickle.load(file)
    for info in metadata.storage_data.values():
        info.relative_path = target
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="names a file outside of its folder"):
        load_weights(zoo.net(), dcp_folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: setattr(m, "storage_data", dict.fromkeys(m.storage_data, 5)),
        lambda m: setattr(m, "storage_data", []),
        lambda m: setattr(m, "state_dict_metadata", {"a": 1}),
        lambda m: [setattr(e, "size", 5) for e in m.state_dict_metadata.values()],
        lambda m: [setattr(e, "chunks", [7]) for e in m.state_dict_metadata.values()],
    ],
)
def test_shard_metadata_of_wrong_shape(zoo, dcp_folder, damage):
    path = dcp_folder / ".metadata"
    with path.open("rb") as file:
        metadata = pickle.load(file)
    damage(metadata)
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"\.metadata is not what torch\.distributed"):
        load_weights(zoo.net(), dcp_folder)


def test_damaged_shards(zoo, dcp_folder):
    shard = dcp_folder / "__0_0.distcp"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 3])
    with pytest.raises(ValueError, match=r"__0_0\.distcp is truncated"):
        load_weights(zoo.net(), dcp_folder)
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(ValueError, match="damaged zip archive"):
        load_weights(zoo.net(), dcp_folder)
    shard.unlink()
    with pytest.raises(ValueError, match=r"its file __0_0\.distcp is missing"):
        load_weights(zoo.net(), dcp_folder)
    (dcp_folder / ".metadata").write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"its \.metadata cannot be read"):
        load_weights(zoo.net(), dcp_folder)
    (dcp_folder / ".metadata").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="holds no checkpoint metadata but dict"):
        load_weights(zoo.net(), dcp_folder)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_state_dict(zoo, tmp_path, suffix, zipped):
    net = zoo.net()
    path = tmp_path / f"weights{suffix}"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    fresh = zoo.net()
    load_weights(fresh, path)
    assert zoo.same(fresh, net)


@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model"])
def test_nested_state_dict(zoo, tmp_path, nest):
    """Lightning's files, with what it stores beside the weights."""
    net = zoo.net()
    weights = {f"model.{key}": value for key, value in net.state_dict().items()}
    beside = {"epoch": 3, "global_step": 5, "hyper_parameters": {"lr": 0.1}, "callbacks": {}}
    torch.save({nest: weights, **beside}, tmp_path / "epoch=3.ckpt")
    fresh = zoo.net()
    load_weights(fresh, tmp_path / "epoch=3.ckpt")
    assert zoo.same(fresh, net)


@pytest.mark.parametrize("name", ["a.safetensors", "without-ending"])
def test_safetensors(zoo, tmp_path, name):
    net = zoo.net()
    save_file(net.state_dict(), tmp_path / name, metadata={"format": "pt"})
    fresh = zoo.net()
    load_weights(fresh, tmp_path / name)
    assert zoo.same(fresh, net)


def test_safetensors_of_tied_weights_of_many_types(tmp_path):
    def make():
        model = nn.Module()
        model.a = nn.Parameter(torch.randn(3, 2).bfloat16())
        model.b = model.a
        model.register_buffer("mask", torch.tensor([True, False]))
        model.register_buffer("scalar", torch.randn(()))
        return model

    model, fresh = make(), make()
    save_model(model, str(tmp_path / "a.safetensors"))
    load_weights(fresh, tmp_path / "a.safetensors")
    assert torch.equal(model.a, fresh.a)
    assert torch.equal(model.scalar, fresh.scalar)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_damaged_safetensors(zoo, tmp_path, share):
    save_file(zoo.net().state_dict(), tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"damaged safetensors|cannot be read"):
        load_weights(zoo.net(), tmp_path / "a.safetensors")


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shard", ["10GB", "8KB"])
@pytest.mark.parametrize("make", ["bert", "gpt"])
def test_hugging_face_folder(zoo, tmp_path, safe, shard, make):
    model = getattr(zoo, make)()
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=shard)
    parts = list(tmp_path.glob("*.safetensors" if safe else "*.bin"))
    assert (len(parts) > 1) == (shard == "8KB")
    bare, wrapped = getattr(zoo, make)(), HuggingFaceModel(getattr(zoo, make)())
    load_weights(bare, tmp_path)
    load_weights(wrapped, tmp_path)
    assert zoo.same(bare, model)
    assert zoo.same(wrapped.model, model)


def test_hugging_face_index_stays_in_its_folder(zoo, tmp_path):
    zoo.bert().save_pretrained(tmp_path, max_shard_size="8KB")
    index = tmp_path / "model.safetensors.index.json"
    text = index.read_text()
    for harm, match in (
        (text.replace("model-00001", "../model-00001"), "names parts outside"),
        (text.replace("model-00001", "model-00099"), "is missing"),
        ("{", "is no index of weights"),
        ('{"weight_map": []}', "names parts outside"),
    ):
        index.write_text(harm)
        with pytest.raises(ValueError, match=match):
            load_weights(zoo.bert(), tmp_path)


def test_planted_in_a_hugging_face_bin(zoo, tmp_path, witness):
    model = zoo.bert()
    model.save_pretrained(tmp_path, safe_serialization=False)
    torch.save(model.state_dict() | {"x": zoo.Payload(witness)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"it asks for posix\.system"):
        load_weights(zoo.bert(), tmp_path)


@pytest.fixture(params=["pt.gz", "pt.bz2", "pt.xz", "pt.lzma", "pt.lz4", "pt.zst", "pt.lzo"])
def compressed_ending(request):
    ending = request.param.removeprefix("pt.")
    if not next(known for known in KNOWN_COMPRESSORS if known.extension == ending).exists:
        pytest.skip(f"the program for {ending} is not installed")
    return request.param


def test_compressed_by_composer(zoo, tmp_path, compressed_ending, monkeypatch):
    model = zoo.classifier()
    zoo.train(model, tmp_path / "run", save_filename=f"ep{{epoch}}.{compressed_ending}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    for name in (f"ep2.{compressed_ending}", "latest-rank0.pt"):
        fresh = zoo.classifier()
        load_weights(fresh, tmp_path / "run" / name)
        assert zoo.same(fresh, model)
    assert list((tmp_path / "temporary").iterdir()) == []
    path = tmp_path / "run" / f"ep2.{compressed_ending}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="it is damaged"):
        load_weights(zoo.classifier(), path)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.lzma"])
def test_tar_of_composer(zoo, tmp_path, ending):
    model = zoo.classifier()
    zoo.train(model, tmp_path, save_filename=f"ep{{epoch}}.{ending}", max_duration="1ep")
    fresh = zoo.classifier()
    load_weights(fresh, tmp_path / f"ep1.{ending}")
    assert zoo.same(fresh, model)


def test_tars_that_are_none_of_composers(zoo, tmp_path):
    torch.save(zoo.net().state_dict(), tmp_path / "a.pt")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.pt", arcname="../escaped.pt")
    with pytest.raises(ValueError, match=r"a tar archive without the composer_states\.pt"):
        load_weights(zoo.net(), tmp_path / "a.tar")
    link = tarfile.TarInfo("composer_states.pt")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "a.pt")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(ValueError, match="a tar archive without"):
        load_weights(zoo.net(), tmp_path / "b.tar")
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(data[:700])
    with pytest.raises(ValueError, match="tar archive"):
        load_weights(zoo.net(), tmp_path / "c.tar")


def test_compressed_bomb(zoo, tmp_path, monkeypatch):
    import gzip

    monkeypatch.setattr("composer_distill.weights.unpacking.SMALL", 1 << 20)
    with gzip.open(tmp_path / "bomb.pt.gz", "wb") as file:
        file.write(bytes(300_000_000))
    with pytest.raises(ValueError, match="it grows beyond 100 times its size"):
        load_weights(zoo.net(), tmp_path / "bomb.pt.gz")


@pytest.mark.parametrize("folder", ["a#b", "what?", "two words", "~", "s3:", "-rf", "ü{rank}"])
def test_unusual_paths(zoo, tmp_path, folder, monkeypatch):
    net = zoo.net()
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    torch.save(net.state_dict(), tmp_path / folder / f"{folder}.pt")
    torch.save(net.state_dict(), tmp_path / folder / "plain.pt")
    for path in (tmp_path / folder / f"{folder}.pt", f"./{folder}/plain.pt"):
        fresh = zoo.net()
        load_weights(fresh, path)
        assert zoo.same(fresh, net)


def test_the_home_folder(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    net, fresh = zoo.net(), zoo.net()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    load_weights(fresh, "~/a.pt")
    assert zoo.same(fresh, net)


def test_symlink_files_of_composer(zoo, trained, tmp_path, monkeypatch):
    model, folder = trained
    shutil.copy(folder / "ep2-ba8-rank0.pt", tmp_path / "ep2.pt")
    create_symlink_file(str(tmp_path / "ep2.pt"), tmp_path / "full.pt.symlink")
    create_symlink_file("ep2.pt", tmp_path / "beside.symlink")
    create_symlink_file("old/folder/ep2.pt", tmp_path / "moved.symlink")
    for name in ("full.pt.symlink", "full.pt", "beside.symlink", "moved.symlink", "moved"):
        fresh = zoo.classifier()
        load_weights(fresh, tmp_path / name)
        assert zoo.same(fresh, model)


def test_symlink_files_that_lead_nowhere(zoo, tmp_path):
    (tmp_path / "a.symlink").write_text("gone.pt")
    with pytest.raises(FileNotFoundError, match=r"points to gone\.pt, which does not exist"):
        load_weights(zoo.net(), tmp_path / "a.symlink")
    (tmp_path / "b.symlink").write_text("b.symlink")
    with pytest.raises(ValueError, match=r"leads through more than 8 \.symlink files"):
        load_weights(zoo.net(), tmp_path / "b.symlink")
    (tmp_path / "c.symlink").write_bytes(bytes(10_000))
    with pytest.raises(ValueError, match=r"is no \.symlink file"):
        load_weights(zoo.net(), tmp_path / "c.symlink")


def test_compiled_run_of_composer(zoo, tmp_path):
    model = zoo.classifier()
    zoo.train(model, tmp_path, compile_config={"backend": "eager"}, max_duration="1ep")
    fresh = zoo.classifier()
    load_weights(fresh, tmp_path / "latest-rank0.pt")
    assert zoo.same(fresh, model)
