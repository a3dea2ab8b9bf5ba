"""Change files of every kind at random and read them, in a process that can hurt nobody.

``python fuzzing.py FOLDER COUNT SEED``: writes one line of JSON for each kind of file. Its memory
is limited, an alarm ends what takes too long, and an audit hook sees what is run or fetched.
"""

import faulthandler
import json
import logging
import random
import resource
import signal
import sys
import warnings
from pathlib import Path

SEEN = []
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "socket.getaddrinfo",
)
PROGRAMS = ("gzip", "bzip2", "bzip", "xz", "lzma", "lz4", "zstd", "lzop")
SECONDS = 20  # of the processor
BYTES = 4 << 30


def watch(event, arguments):
    if event.startswith(FORBIDDEN):
        SEEN.append(event)
    elif event == "subprocess.Popen" and Path(str(arguments[0])).name not in PROGRAMS:
        SEEN.append(f"{event} {arguments[0]!r}")


def changed(data, rng):
    """Bytes with one thing changed, of the kinds that break readers."""
    data = bytearray(data)
    place, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 8, 64))
    kind = rng.randrange(7)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place : place + length] = rng.randbytes(length)
    elif kind == 2:
        data[place : place + length] = b"\xff" * length
    elif kind == 3:
        del data[place : place + length]
    elif kind == 4:
        data[place:place] = data[place : place + length] * rng.choice((1, 3, 1000))
    elif kind == 5:
        del data[place:]
    else:
        other = rng.randrange(len(data))
        data[place : place + length] = data[other : other + length]
    return bytes(data)


def repaired(data):
    """A zip archive whose checksums are not looked at, so that what was changed is read."""
    out, place = bytearray(data), -1
    while (place := out.find(b"PK\x01\x02", place + 1)) >= 0:
        out[place + 16 : place + 20] = bytes(4)
    return bytes(out)


def main(folder, count, seed):
    import readers  # beside this file
    import transformers.models.bert.modeling_bert  # noqa: F401, so that no reading waits for it

    from composer_distill.teachers import Teacher  # noqa: F401

    readers.read_all(readers.write("state_dict", folder / "first")[0])  # libraries look about once
    SEEN.clear()
    kinds = [kind for kind in readers.KINDS if readers.available(kind)]
    for number, kind in enumerate(kinds):
        rng = random.Random(seed * 1000 + number)
        path, files = readers.write(kind, folder / str(number))
        whole = {file: file.read_bytes() for file in files}
        faults, refused = [], 0
        for _ in range(-(-count // len(kinds))):
            file = rng.choice(files)
            data = changed(whole[file], rng)
            file.write_bytes(repaired(data) if rng.random() < 0.7 else data)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            ways = readers.read_all(path) if rng.random() < 0.1 else readers.read_some(path)
            signal.setitimer(signal.ITIMER_PROF, 0)
            refused += any(ways.values())
            bad = [text for text in ways.values() if is_bad(text)]
            if bad or SEEN:
                faults.append([file.name, bad[:2], SEEN[:3]])
                (folder / f"fault-{number}-{len(faults)}").write_bytes(file.read_bytes())
                SEEN.clear()
            file.write_bytes(whole[file])
        print(json.dumps({"kind": kind, "faults": faults[:5], "refused": refused}), flush=True)


def is_bad(text):
    return text.startswith("RAW") or len(text) > 10_000 or any(c < " " and c != "\n" for c in text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # tells where it was, before it ends
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    sys.path.insert(0, str(Path(__file__).parent))
    sys.addaudithook(watch)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
