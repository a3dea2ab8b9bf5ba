"""From what a user names as a source to a file or folder on this machine."""

import os
from difflib import get_close_matches
from pathlib import Path

SYMLINK = ".symlink"
MAX_LINKS = 8
_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", SYMLINK)


def resolve_path(source: str | Path) -> Path:
    """Find a local file or folder, following Composer's ``.symlink`` files.

    Args:
        source: A path. ``~`` is the home folder; ``#``, ``?`` and spaces are letters like others.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If ``.symlink`` files point in a circle.
    """
    path = _existing(Path(os.path.expanduser(source)))
    for _ in range(MAX_LINKS):
        if path.suffix != SYMLINK or not path.is_file():
            return path
        path = _target(path)
    raise ValueError(f"{source} leads through more than {MAX_LINKS} {SYMLINK} files")


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    link = path.with_name(path.name + SYMLINK)
    if link.is_file():
        return link
    raise FileNotFoundError(f"there is no checkpoint at {path}{_nearby(path)}")


def _nearby(path: Path) -> str:
    if path.is_symlink():
        return f": it is a link to {path.readlink()}, which does not exist"
    if not path.parent.is_dir():
        return f": the folder {path.parent} does not exist"
    names = sorted(entry.name for entry in path.parent.iterdir())
    if alike := get_close_matches(path.name, names, 5):
        return f"; the folder {path.parent} holds {', '.join(alike)}"
    weights = [name for name in names if Path(name).suffix in _ENDINGS]
    if weights:
        more = f" and {len(weights) - 5} more" if len(weights) > 5 else ""
        return f"; the folder {path.parent} holds {', '.join(weights[:5])}{more}"
    return f"; nothing in the folder {path.parent} is called so, or ends as weights do"


def link_target(link: Path) -> str:
    """The path that Composer wrote into a ``.symlink`` file.

    Args:
        link: The file.

    Raises:
        ValueError: If it holds anything else.
    """
    with link.open("rb") as stream:
        text = stream.read(4097).decode(errors="replace").strip()
    if not text or not text.isprintable() or len(text) > 4096:
        raise ValueError(f"{link} is no {SYMLINK} file: it should hold one path")
    return text


def _target(link: Path) -> Path:
    """The path as the run saw it, or beside the link by now."""
    text = link_target(link)
    for candidate in (Path(text), link.parent / text, link.parent / Path(text).name):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{link} points to {text}, which does not exist")
