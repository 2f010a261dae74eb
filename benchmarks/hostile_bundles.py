"""2,000 mutated bundles and 30 hostile graphs under a valid hash: none accepted, nothing opened outside.

A mutated bundle has one to three changes to its bytes, names or files, and is opened with the digest that the
registry would hold. A hostile graph stands in the place of score.onnx or explain.onnx, the manifest lists
its true sha256, and no digest is asked for: only what the graph says can give it away. Each is opened as the
service opens it, in a process of its own with bounded memory, watched for files opened outside the bundle.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing as mp
import os
import resource
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.fuzz_service import fitted_bundle

MEMORY = 6 * 2**30
SECONDS = 120
IN_OPEN = 0x20
GRAPHS = ("score.onnx", "explain.onnx")


def main() -> None:
    """Open all and write the figures."""
    made = harness.parser(__doc__, data=False)
    made.add_argument("--bundle", type=Path, help="a small one is fitted by default")
    made.add_argument("--bundles", type=int, default=2000)
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = options.bundle or fitted_bundle(Path(folder))
        count = 40 if options.quick else options.bundles
        found = {
            "mutated": mutated_bundles(good, count, options.seed, Path(folder)),
            "graphs": hostile_graphs(good, Path(folder)),
        }
    for name, values in found.items():
        harness.show(name, [{"figure": key, "value": str(value)} for key, value in values.items()])
    harness.write("hostile", found, options)
    if any(values["accepted"] or values["crashes"] or values["opened_outside"] for values in found.values()):
        sys.exit(1)


def mutated_bundles(good: Path, count: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Open bundles with random changes.

    Returns
    -------
    dict
        ``opened``, ``accepted``, ``crashes`` (anything but a refusal of ours), ``opened_outside``,
        ``refusals`` by class.
    """
    digest = sha256((good / "manifest.json").read_bytes()).hexdigest()
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    outside: set[str] = set()
    watch = Watch(outside)
    for i in range(count):
        bundle = scratch / f"mutated-{i}"
        shutil.copytree(good, bundle)
        while sealed(bundle) == sealed(good):
            mutate(bundle, rng, scratch)
        with watch.inside(bundle):
            outcomes[opened(bundle, digest)] += 1
        shutil.rmtree(bundle)
    return summary(outcomes, outside)


def opened(bundle: Path, digest: str | None) -> str:
    """What opening ends with: the name of a refusal, "accepted", or "crash: ..."."""
    from vae_anomaly.exceptions import BundleError
    from vae_anomaly.runtime import load_bundle

    try:
        load_bundle(bundle, device="cpu", expected_digest=digest)
    except BundleError as error:
        return type(error).__name__
    except Exception as error:
        return f"crash: {type(error).__name__}"
    return "accepted"


def sealed(bundle: Path) -> dict[str, Any]:
    """Names and contents, links as such."""
    return {
        path.relative_to(bundle).as_posix(): None if path.is_symlink() or path.is_dir() else path.read_bytes()
        for path in bundle.rglob("*")
    }


def mutate(bundle: Path, rng: np.random.Generator, scratch: Path) -> None:
    """One to three random changes."""
    secret = scratch / "secret"
    secret.write_text("outside")
    for _ in range(rng.integers(1, 4)):
        files = sorted(path for path in bundle.iterdir() if path.is_file() and not path.is_symlink())
        if not files:
            return
        path, other = (files[int(i)] for i in rng.integers(0, len(files), 2))
        MUTATIONS[int(rng.integers(0, len(MUTATIONS)))](path, other, rng, secret)


def _flip(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in rng.integers(0, max(len(data), 1), rng.integers(1, 9)):
        if len(data):
            data[at] ^= 1 << int(rng.integers(0, 8))
    path.write_bytes(data)


def _cut(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(0, len(data) + 1))])


def _grow(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 100))))


def _swap(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def _remove(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    path.unlink()


def _rename(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    path.rename(path.with_name(f"{path.name}.{int(rng.integers(0, 1000))}"))


def _add(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    path.with_name(f"extra-{int(rng.integers(0, 1000))}.onnx").write_bytes(path.read_bytes())


def _link(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    path.unlink()
    path.symlink_to(secret)


def _manifest(path: Path, other: Path, rng: np.random.Generator, secret: Path) -> None:
    """Another value somewhere in the manifest, well formed."""
    manifest = path.parent / "manifest.json"
    if not manifest.is_file() or manifest.is_symlink():
        return
    try:
        data = json.loads(manifest.read_bytes())
        key = sorted(data)[int(rng.integers(0, len(data)))]
    except ValueError:
        return
    odd = (None, -1, 1e300, "../../etc/passwd", [], {}, True, {"../secret": "0" * 64})
    data[key] = odd[int(rng.integers(0, len(odd)))]
    manifest.write_text(json.dumps(data))


MUTATIONS: tuple[Callable[[Path, Path, np.random.Generator, Path], None], ...] = (
    _flip, _flip, _flip, _cut, _grow, _swap, _remove, _rename, _add, _link, _manifest
)  # fmt: skip


def hostile_graphs(good: Path, scratch: Path) -> dict[str, Any]:
    """Open bundles with one hostile graph each, every hash valid, one process each."""
    from benchmarks.hostile_graphs import HOSTILE

    outcomes: Counter[str] = Counter()
    outside: set[str] = set()
    said: dict[str, str] = {}
    for i, name in enumerate(HOSTILE):
        bundle = scratch / f"hostile-{name}"
        shutil.copytree(good, bundle)
        secret = scratch / "outside"
        secret.mkdir(exist_ok=True)
        (secret / "weights.bin").write_bytes(b"\0" * 4096)
        graph = GRAPHS[i % len(GRAPHS)]
        (bundle / graph).write_bytes(HOSTILE[name]((bundle / graph).read_bytes(), secret / "weights.bin"))
        reseal(bundle)
        said[name] = in_own_process(bundle, secret, outside)
        outcomes[said[name]] += 1
        shutil.rmtree(bundle)
    return {**summary(outcomes, outside), "each": said}


def reseal(bundle: Path) -> None:
    """Give every file its true hash in the manifest, as an attacker would."""
    data = json.loads((bundle / "manifest.json").read_text())
    data["files"] = {name: sha256((bundle / name).read_bytes()).hexdigest() for name in data["files"]}
    (bundle / "manifest.json").write_text(json.dumps(data, sort_keys=True, indent=2) + "\n")


def in_own_process(bundle: Path, secret: Path, outside: set[str]) -> str:
    """Open as the service does, where a crash or an endless loop hurts nobody."""
    watched = Inotify(secret)
    receiving, sending = mp.get_context("spawn").Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=_open_as_service, args=(str(bundle), sending))
    process.start()
    sending.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return "crash: no end"
    outside |= watched.opened()
    try:
        found, names = receiving.recv()
    except EOFError:
        return f"crash: exit code {process.exitcode}"
    outside |= set(names)
    return str(found)


def _open_as_service(bundle: str, sending: Any) -> None:
    from serving.service.reload import Source
    from vae_anomaly.exceptions import BundleError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outside: set[str] = set()
    with Watch(outside).inside(Path(bundle)):
        try:
            Source(bundle, device="cpu", workers=1).open()
            found = "accepted"
        except BundleError as error:
            found = type(error).__name__
        except BaseException as error:
            found = f"crash: {type(error).__name__}"
    sending.send((found, sorted(outside)))


class Watch:
    """Files that Python opens outside a bundle, other than code and what belongs to the system.

    Parameters
    ----------
    outside : set of str
        Gets their names.
    """

    def __init__(self, outside: set[str]) -> None:
        self._outside = outside
        self._bundle: str | None = None
        self._allowed = (sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev", "/usr", "/lib", "/etc/ld")
        self._allowed += tuple(str(Path(place).resolve()) for place in sys.path if place)
        sys.addaudithook(self._hear)

    def inside(self, bundle: Path) -> Watch:
        """Watch while this bundle is opened."""
        self._bundle = str(bundle)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> None:
        self._bundle = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or self._bundle is None or not isinstance(arguments[0], str | bytes):
            return
        name = os.path.realpath(os.fsdecode(arguments[0]))
        if not name.startswith((os.path.realpath(self._bundle), *self._allowed)):
            self._outside.add(name)


class Inotify:
    """Files opened in a folder by anybody, libraries in C included; Linux's inotify."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        if libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def opened(self) -> set[str]:
        """Names so far; ends the watch."""
        names: set[str] = set()
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            data = b""
        finally:
            os.close(self._fd)
        while data:
            size = struct.unpack_from("iIII", data)[3]
            names.add(data[16 : 16 + size].rstrip(b"\0").decode())
            data = data[16 + size :]
        return names


def summary(outcomes: Counter[str], outside: set[str]) -> dict[str, Any]:
    """The figures."""
    return {
        "opened": sum(outcomes.values()),
        "accepted": outcomes["accepted"],
        "crashes": sum(count for name, count in outcomes.items() if name.startswith("crash")),
        "opened_outside": len(outside),
        "outcomes": dict(sorted(outcomes.items())),
    }


if __name__ == "__main__":
    main()
