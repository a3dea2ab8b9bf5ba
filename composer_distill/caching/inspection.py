"""What a cache holds, in words."""

from pathlib import Path

from composer_distill.caching.manifest import MANIFEST, Manifest, read_manifest, summed
from composer_distill.caching.shards import read_facts
from composer_distill.weights.uris import Remote, parse_remote
from composer_distill.weights.wording import plain


def manifest_of(source: str | Path) -> Manifest | None:
    """Return the manifest of a cache, None of anything else; an unfinished one is summed up.

    Args:
        source: A path, or the URI of an object store.

    Raises:
        ValueError: If it is a cache that can't be read.
    """
    remote = parse_remote(source)
    if remote is not None:
        from composer_distill.weights.remote import fetch  # which loads Composer

        name = f"{remote.name.rstrip('/')}/{MANIFEST}"
        try:
            path = fetch(Remote(remote.scheme, remote.bucket, name))
        except FileNotFoundError:
            return None
        return read_manifest(path, str(source))
    path = Path(source).expanduser() / MANIFEST
    if not path.is_file():
        return None
    manifest = read_manifest(path, str(source))
    if manifest.finished:
        return manifest
    return summed(manifest.recipe, read_facts(path.parent), str(source))


def describe_cache(source: str | Path, manifest: Manifest) -> str:
    """Tell what a cache holds.

    Args:
        source: Where it is.
        manifest: Its manifest.
    """
    recipe = manifest.recipe
    kept = {
        "logits": "whole logits, for any loss and temperature",
        "top_k": f"the {recipe.count} likeliest classes and the rest's probability",
        "samples": f"{recipe.count} draws, seed {recipe.seed}",
    }[recipe.kind]
    # draws are counted in whole numbers
    stored = "" if recipe.kind == "samples" else f", in {manifest.dtype or 'no type yet'}"
    a_position = manifest.bytes / manifest.positions if manifest.positions else 0.0
    lines = [
        str(source),
        f"a teacher's answers, {'finished' if manifest.finished else 'UNFINISHED'}",
        f"teacher: {recipe.teacher}",
        f"kept: {kept}{stored}",
        f"classes: {manifest.classes}",
        f"samples: {manifest.samples:,}, positions: {manifest.positions:,}",
        f"size: {manifest.bytes:,} bytes in {len(manifest.shards)} shards",
        f"bytes a position: {a_position:.4g}",
    ]
    if recipe.temperature is not None:
        lines.append(f"temperature: {recipe.temperature:g}")
    if manifest.mass is not None:
        lines.append(f"mean probability of the classes that are kept: {manifest.mass:.4f}")
    if recipe.tokenizer is not None:
        lines.append(f"tokenizer: {recipe.tokenizer}")
    if manifest.fields is not None:
        lines.append(f"the teacher read: {', '.join(manifest.fields)}")
    lines += [f"written with {name} {number}" for name, number in manifest.versions.items()]
    return "\n".join(plain(line, 500) for line in lines)
