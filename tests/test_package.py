import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import composer_distill

ROOT = Path(__file__).parent.parent
MODULES = [
    module.name
    for module in pkgutil.walk_packages(composer_distill.__path__, "composer_distill.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_the_public_names_exist_and_are_documented():
    for name in composer_distill.__all__:
        assert getattr(composer_distill, name).__doc__


def test_import_is_silent():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import composer_distill"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == result.stderr == ""


# Every public name and how it is called. A change here is a change for users: tell the changelog.
SURFACE = {
    "composer_distill": """
AdapterFreeTeacher(*, start_dur=0.0, end_dur=1.0, name='student without adapters', weight=1.0)
CachedTeacher(folder, teacher=None, *, name=None, weight=1.0, start_dur=0.0, end_dur=1.0,
    unfinished=False, tail='bucket')
Distillation(teachers, kd_loss_fn, kd_loss_weight=0.9, org_loss_weight=0.1, start_dur=0.0,
    end_dur=1.0, n_teachers_to_sample=None, *, route_by=None, feature_terms=(),
    projector_optimizer=None, combine='logits', seed=0, student_output_fn=None, mask_fn=None,
    vocab_size=None,
    on_nonfinite='raise', eval_teachers=False, telemetry=True, verify_teachers=True,
    teacher_sharding='auto', overlap=False)
EMATeacher(*, decay=0.999, update_every='1ba', warmup=0, start_dur=0.0, end_dur=1.0,
    name='EMA of the student', weight=1.0)
FeatureTerm(student, teacher=None, loss=None, weight=1.0, projector=None, mask_fn=None,
    start_dur=None, end_dur=None, of='output', name=None)
KLDivergence(temperature=4.0, dim=-1, reduction='mean', *, softmax_dim=None)
OnPolicy(fraction=0.5, max_new_tokens=128, temperature=1.0, top_p=1.0, seed=0, *, prompt_fn=None,
    generate_fn=None, buffer_batches=1)
Snapshot(*, start_dur=0.0, end_dur=1.0, name='snapshot of the student', weight=1.0)
Teacher(model, *, checkpoint=None, name=None, weight=1.0, start_dur=0.0, end_dur=1.0,
    route=None, input_fn=None, output_fn=None,
    dtype=None, compile=False, offload=False, microbatch_size=None, strict=True, ema=None)
Teacher.from_pretrained(folder_or_name, **options)
Teacher.from_composer_checkpoint(path, **options)
all_positions(batch, outputs=None)
attended_positions(batch, outputs=None)
cache_teacher(teacher, data, folder, *, top_k=None, samples=None, temperature=1.0, seed=0,
    dtype=None, vocab_size=None, precision='fp32', device=None, views=None, sharded=False,
    shard_bytes=33554432, progress_bar=False)
copy_matching(student, teacher)
distillation_from_config(config, *, path='algorithms.distillation')
layer_importance(model, batches, *, stack=None)
loss_positions(batch, outputs=None, *, shift=True)
reorder_labels(teacher_config, student_config, *, dim=-1)
student_from_teacher(model, layers=None, *, n_layers=None, hidden=None, intermediate=None,
    heads=None, batches=None, stacks=None)
teacher_confident(probability)
teacher_correct(target, labels=None, axis=-1)
""",
    "composer_distill.losses": """
AdaptiveKLDivergence(mu=0.5, temperature=1.0, dim=-1, reduction='mean')
AlphaBetaDivergence(alpha=0.2, beta=0.7, temperature=1.0, dim=-1, reduction='mean')
AttentionKL()
AttentionMSE()
AttentionTransfer(p=2.0, dim=1)
BernoulliKL(temperature=1.0, dim=-1, reduction='mean')
CKA()
CosineEmbedding(dim=-1, reduction='mean')
DIST(beta=1.0, gamma=1.0, temperature=1.0, dim=-1, reduction='mean')
DecoupledKD(alpha=1.0, beta=8.0, temperature=4.0, dim=-1, reduction='mean')
DistillationLoss(dim=-1, reduction='mean')
FeatureLoss()
FusedLinearKL(temperature=1.0, reduction='mean')
HardLabel(dim=-1, reduction='mean')
HiddenCosine(dim=-1)
HiddenMSE(normalize=False, dim=-1)
IKL(alpha=1.0, beta=1.0, weight_temperature=100.0, temperature=1.0, dim=-1, reduction='mean')
JensenShannonDivergence(beta=0.5, scaled=False, temperature=1.0, dim=-1, reduction='mean')
KLDivergence(temperature=4.0, dim=-1, reduction='mean', *, softmax_dim=None)
LogitMSE(center=False, dim=-1, reduction='mean')
MiniLMRelation(relation_heads=48)
NeuronSelectivity(dim=1)
NormalizedKD(gamma=1.5, temperature=1.0, dim=-1, reduction='mean')
ProbabilisticTransfer()
RelationalKD(distance=25.0, angle=50.0)
ReverseKLDivergence(temperature=1.0, dim=-1, reduction='mean')
ReverseSkewKLDivergence(alpha=0.1, temperature=1.0, dim=-1, reduction='mean')
SimilarityPreserving()
SkewKLDivergence(alpha=0.1, temperature=1.0, dim=-1, reduction='mean')
SoftCrossEntropy(temperature=4.0, dim=-1, reduction='mean')
StandardizedLogits(loss)
TopKKL(k, tail='bucket', temperature=1.0, dim=-1, reduction='mean')
TotalVariation(temperature=1.0, dim=-1, reduction='mean')
VariationalInformation(channels=None, variance=5.0, dim=1)
WeightedSum(terms)
adaptive_kl_divergence(student, teacher, mask=None, *, mu=0.5, temperature=1.0, dim=-1,
    reduction='mean')
alpha_beta_divergence(student, teacher, mask=None, *, alpha=0.2, beta=0.7, temperature=1.0,
    dim=-1, reduction='mean')
attention_kl(student, teacher, mask=None)
attention_mse(student, teacher, mask=None)
attention_transfer(student, teacher, mask=None, *, p=2.0, dim=1)
bernoulli_kl(student, teacher, mask=None, *, temperature=1.0, dim=-1, reduction='mean')
cka(student, teacher, mask=None)
cosine_embedding(student, teacher, mask=None, *, dim=-1, reduction='mean')
decoupled_kd(student, teacher, mask=None, labels=None, *, alpha=1.0, beta=8.0, temperature=4.0,
    dim=-1, reduction='mean')
dist(student, teacher, mask=None, *, beta=1.0, gamma=1.0, temperature=1.0, dim=-1,
    reduction='mean')
fused_linear_kl(student_hidden, student_weight, teacher_hidden, teacher_weight, mask=None, *,
    student_bias=None, teacher_bias=None, student_cap=None, teacher_cap=None, temperature=1.0,
    reduction='mean', watch=None)
hard_label(student, teacher, mask=None, *, dim=-1, reduction='mean')
hidden_cosine(student, teacher, mask=None, *, dim=-1)
hidden_mse(student, teacher, mask=None, *, normalize=False, dim=-1)
ikl(student, teacher, mask=None, *, alpha=1.0, beta=1.0, weight_temperature=100.0,
    temperature=1.0, dim=-1, reduction='mean')
jensen_shannon_divergence(student, teacher, mask=None, *, beta=0.5, scaled=False,
    temperature=1.0, dim=-1, reduction='mean')
kl_divergence(student, teacher, mask=None, *, temperature=4.0, dim=-1, reduction='mean')
logit_mse(student, teacher, mask=None, *, center=False, dim=-1, reduction='mean')
minilm_relation(student, teacher, mask=None, *, relation_heads=48)
neuron_selectivity(student, teacher, mask=None, *, dim=1)
normalized_kd(student, teacher, mask=None, labels=None, *, gamma=1.5, temperature=1.0, dim=-1,
    reduction='mean')
probabilistic_transfer(student, teacher, mask=None)
relational_kd(student, teacher, mask=None, *, distance=25.0, angle=50.0)
reverse_kl_divergence(student, teacher, mask=None, *, temperature=1.0, dim=-1, reduction='mean')
reverse_skew_kl_divergence(student, teacher, mask=None, *, alpha=0.1, temperature=1.0, dim=-1,
    reduction='mean')
similarity_preserving(student, teacher, mask=None)
skew_kl_divergence(student, teacher, mask=None, *, alpha=0.1, temperature=1.0, dim=-1,
    reduction='mean')
soft_cross_entropy(student, teacher, mask=None, *, temperature=4.0, dim=-1, reduction='mean')
standardize(logits, dim=-1, eps=1e-07)
top_k_kl(student, teacher, mask=None, *, k, tail='bucket', temperature=1.0, dim=-1,
    reduction='mean')
total_variation(student, teacher, mask=None, *, temperature=1.0, dim=-1, reduction='mean')
variational_information(student, teacher, mask=None, *, variance, dim=1)
""",
    "composer_distill.teachers": """
AdapterFreeTeacher(*, start_dur=0.0, end_dur=1.0, name='student without adapters', weight=1.0)
CachedTeacher(folder, teacher=None, *, name=None, weight=1.0, start_dur=0.0, end_dur=1.0,
    unfinished=False, tail='bucket')
EMATeacher(*, decay=0.999, update_every='1ba', warmup=0, start_dur=0.0, end_dur=1.0,
    name='EMA of the student', weight=1.0)
Snapshot(*, start_dur=0.0, end_dur=1.0, name='snapshot of the student', weight=1.0)
Teacher(model, *, checkpoint=None, name=None, weight=1.0, start_dur=0.0, end_dur=1.0,
    route=None, input_fn=None, output_fn=None,
    dtype=None, compile=False, offload=False, microbatch_size=None, strict=True, ema=None)
Teacher.from_pretrained(folder_or_name, **options)
Teacher.from_composer_checkpoint(path, **options)
cache_teacher(teacher, data, folder, *, top_k=None, samples=None, temperature=1.0, seed=0,
    dtype=None, vocab_size=None, precision='fp32', device=None, views=None, sharded=False,
    shard_bytes=33554432, progress_bar=False)
load_weights(model, source, *, name='teacher', strict=True, ema=None)
""",
}


def call_of(function):
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))


def calls_of(name, value):
    """Return how a name is called, and a class's other constructors."""
    constructors = (
        f"{name}.{other}{call_of(getattr(value, other))}"
        for other, member in (vars(value).items() if inspect.isclass(value) else ())
        if isinstance(member, classmethod) and not other.startswith("_")
    )
    return [f"{name}{call_of(value)}", *constructors]


@pytest.mark.parametrize("name", SURFACE)
def test_the_public_surface_is_the_one_written_here(name):
    module = importlib.import_module(name)
    found = [call for n in sorted(module.__all__) for call in calls_of(n, getattr(module, n))]
    written = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", SURFACE[name].strip())]
    assert found == written


def test_the_version_stands_in_one_place():
    version = re.compile(rf"""["']{re.escape(composer_distill.__version__)}["']""")
    files = [ROOT / "pyproject.toml"]
    files += [file for room in ("composer_distill", "docs") for file in (ROOT / room).rglob("*.py")]
    holders = [file.relative_to(ROOT) for file in files if version.search(file.read_text())]
    assert holders == [Path("composer_distill/__init__.py")]


# What is imported by another name than the one that it is installed by
DISTRIBUTIONS = {"composer": "mosaicml", "sklearn": "scikit-learn", "triton": "torch"}


def imported_packages():
    """The packages that any file of ours imports, wherever in it the import stands."""
    for path in (ROOT / "composer_distill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                yield name.split(".")[0]


def test_every_package_that_is_imported_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    needs = re.search(r"\ndependencies = \[(.*?)\n\]", text, re.S)
    extras = re.findall(r"^(?:cache|demo|nlp) = \[(.*)\]$", text, re.M)
    assert needs is not None
    declared = set(re.findall(r'"([A-Za-z0-9_-]+)[^"]*"', " ".join([needs[1], *extras])))
    imported = set(imported_packages()) - set(sys.stdlib_module_names) - {"composer_distill"}
    imported = {DISTRIBUTIONS.get(name, name) for name in imported}
    assert {"filelock", "tqdm", "torchmetrics"} <= imported
    assert imported - declared == set()
