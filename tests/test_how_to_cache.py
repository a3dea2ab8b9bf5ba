"""The how-to of cached teachers, pasted into a shell in an empty folder as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

from composer_distill.caching.reader import Cache

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "how-to-cache.md").read_text("utf-8")


def test_the_page_leads_from_an_empty_folder_to_a_student_of_two_processes(tmp_path):
    install, *blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert install.startswith("pip install")
    assert len(blocks) == 5
    (tmp_path / "walk.sh").write_text("set -e\n" + "\n".join(blocks), "utf-8")
    folder = tmp_path / "empty"
    folder.mkdir()
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    walked = subprocess.run(
        ["bash", "../walk.sh"],
        cwd=folder,
        env={
            **os.environ,
            "PATH": os.pathsep.join(paths),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "GLOO_SOCKET_IFNAME": "lo",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
        },
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
    )
    told = walked.stdout + walked.stderr
    assert walked.returncode == 0, told[-4000:]
    assert "a teacher's answers, finished" in walked.stdout
    assert "batches; the student lies in ./student" in walked.stdout
    assert "Warning" not in told
    assert "mean of means" not in told
    manifest = Cache(folder / "answers").manifest
    texts = len((folder / "tokens" / "train.jsonl").read_text().splitlines())
    assert manifest.samples == texts > 100
    assert {name.partition("/")[0] for name in manifest.shards} == {"part-00000", "part-00001"}
    with safe_open(folder / "student" / "model.safetensors", "pt") as student:
        assert student.get_slice("transformer.wte.weight").get_shape()[1] == 48
