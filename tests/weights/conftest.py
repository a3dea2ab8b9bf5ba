"""Checkpoints that the real Composer Trainer wrote, and the models they were written from."""

import os
from types import SimpleNamespace

import boto3
import object_store
import pytest
import torch
from composer import Trainer
from composer.algorithms import EMA
from composer.models import ComposerClassifier, HuggingFaceModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BUCKET = "checkpoints"


def make_net(classes=4, width=8):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def make_classifier(classes=4, width=8):
    return ComposerClassifier(make_net(classes, width), num_classes=classes)


def make_bert(labels=3):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=labels,
    )
    return BertForSequenceClassification(config)


def make_gpt():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    )


def loader(batch_size=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 16, generator=generator)
    labels = torch.randint(0, 4, (32,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def text_loader():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (8, 6), generator=generator)
    rows = [
        {"input_ids": row, "attention_mask": torch.ones(6, dtype=torch.long), "labels": index % 3}
        for index, row in enumerate(ids)
    ]
    return DataLoader(rows, batch_size=4)


def train(model, folder, data=None, **options):
    """Train for two epochs with a real Trainer that saves into ``folder``; give the Trainer."""
    options.setdefault("max_duration", "2ep")
    trainer = Trainer(
        model=model,
        train_dataloader=data or loader(),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        save_folder=str(folder),
        progress_bar=False,
        **options,
    )
    trainer.fit()
    trainer.close()
    return trainer


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


class Payload:
    """Unpickling it the ordinary way makes a file: proof that something was executed."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch '{self.witness}'",)


class EvalPayload(Payload):
    def __reduce__(self):
        return eval, (f"open({str(self.witness)!r}, 'w').close()",)


@pytest.fixture(scope="session")
def zoo():
    """The makers above, for the tests."""
    return SimpleNamespace(
        net=make_net,
        classifier=make_classifier,
        bert=make_bert,
        gpt=make_gpt,
        loader=loader,
        text_loader=text_loader,
        train=train,
        same=same_weights,
        Payload=Payload,
        EvalPayload=EvalPayload,
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A trained classifier and the folder with its full checkpoints."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("full")
    model = make_classifier()
    train(model, folder)
    return model, folder


@pytest.fixture(scope="session")
def trained_weights_only(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("weights-only")
    model = make_classifier()
    train(model, folder, save_weights_only=True)
    return model, folder


@pytest.fixture(scope="session")
def trained_bert(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("bert")
    model = HuggingFaceModel(make_bert())
    train(model, folder, text_loader())
    return model, folder


@pytest.fixture(scope="session")
def trained_ema(tmp_path_factory):
    """A run with EMA; its checkpoint has the average in the model's place."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("ema")
    model = make_classifier()
    train(model, folder, algorithms=[EMA(half_life="3ba")])
    return model, folder


@pytest.fixture
def witness(tmp_path):
    """A path that a planted payload would create; checked after the test as well."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "a payload was executed"


@pytest.fixture(scope="session")
def server():
    """A server of the S3 protocol on this machine."""
    with object_store.serving() as address:
        yield address


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """A client of an empty bucket, and an environment in which Composer finds the server."""
    object_store.use(server, tmp_path / "cache", monkeypatch)
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket=BUCKET)
    yield client
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    client.close()


@pytest.fixture
def downloads(monkeypatch):
    """The names of the objects that were downloaded."""
    return object_store.downloaded(monkeypatch)
