"""The `cuda` extra brings every library that onnxruntime's CUDA provider needs; no GPU is asked."""

from __future__ import annotations

import importlib.metadata
import mmap
import re
import struct
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = "onnxruntime-gpu"
PROVIDER = "libonnxruntime_providers_cuda.so"
# What every Linux has, and what comes with the driver.
SYSTEM = re.compile(r"^(libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|librt|ld-linux-x86-64)\.so\.\d+$")
DRIVER = "libcuda.so.1"
DYNAMIC, NEEDED, STRINGS = 2, 1, 5


def needed_libraries(path: Path) -> set[str]:
    """DT_NEEDED of a 64-bit little-endian ELF file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert data[:6] == b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file"
        (table,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        # Type, flags, offset, virtual address, physical address, size in the file.
        segments = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
        start, length = next((s[2], s[5]) for s in segments if s[0] == DYNAMIC)
        entries = [struct.unpack_from("<QQ", data, start + at) for at in range(0, length, 16)]
        address = next(value for tag, value in entries if tag == STRINGS)
        strings = next(s[2] + address - s[3] for s in segments if s[0] == 1 and s[3] <= address < s[3] + s[5])
        offsets = [strings + value for tag, value in entries if tag == NEEDED]
        return {data[at : data.find(b"\0", at)].decode() for at in offsets}


def extra() -> list[Requirement]:
    """The `cuda` extra of this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["optional-dependencies"]["cuda"]]


def closure(wanted: list[Requirement]) -> tuple[dict[str, Distribution], set[str]]:
    """Every distribution that the requirements bring, by name, and those not installed here."""
    found: dict[str, Distribution] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    here = [item for item in wanted if item.marker is None or item.marker.evaluate()]
    waiting = [(item.name, name) for item in here for name in ("", *item.extras)]
    while waiting:
        name, chosen = waiting.pop()
        name = canonicalize_name(name)
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        try:
            found[name] = importlib.metadata.distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        for inner in map(Requirement, found[name].requires or ()):
            if inner.marker is None or inner.marker.evaluate({"extra": chosen}):
                waiting += [(inner.name, part) for part in ("", *inner.extras)]
    return found, missing


@pytest.fixture(scope="module")
def provider() -> Path:
    if sys.platform != "linux":
        pytest.skip("the library names here are those of Linux")
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not the installed onnxruntime")
    return Path(str(next(file.locate() for file in files if file.name == PROVIDER)))


def test_the_reader_reads_needed_libraries() -> None:
    """Of the interpreter's own file, or its shared library: they need at least libc."""
    if sys.platform != "linux":
        pytest.skip("no ELF files here")
    assert "libc.so.6" in needed_libraries(Path(sys.executable).resolve())


def test_the_extra_brings_every_library_of_the_cuda_provider(provider: Path) -> None:
    found, missing = closure(extra())
    shipped = {file.name for distribution in found.values() for file in distribution.files or ()}
    wanted = needed_libraries(provider)
    assert "libcublas.so" in {name.rpartition(".")[0] for name in wanted}
    lacking = {name for name in wanted - shipped if name != DRIVER and not SYSTEM.match(name)}
    if lacking and missing:
        pytest.skip(f"{sorted(lacking)} cannot be looked for: {sorted(missing)} are not installed here")
    assert not lacking, f"no distribution of the cuda extra ships {sorted(lacking)}"


def test_the_extra_names_cublas_itself() -> None:
    """onnxruntime's own extras leave it out: it must not hang on what cuDNN happens to need."""
    assert {"onnxruntime-gpu", "nvidia-cublas"} <= {canonicalize_name(item.name) for item in extra()}
