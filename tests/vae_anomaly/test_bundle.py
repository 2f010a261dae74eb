"""A bundle opens as it was sealed, or not at all."""

import io
import json
import os
import pickle
import re
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vae_anomaly import bundle as module
from vae_anomaly.bundle import MANIFEST, Manifest, open_bundle, seal
from vae_anomaly.exceptions import BundleError, TamperedBundleError
from vae_anomaly.schema import ImageSchema

AGAIN = "; fetch the bundle again"

UNSEALED = Manifest(
    kind="vae",
    name="digits",
    schema=ImageSchema(1, 8, 8),
    likelihood={"name": "bernoulli"},
    architecture={"hidden": [64, 32], "mask_input": True},
    scores=("neg_elbo", "latent_maha"),
    default_score="neg_elbo",
    draws=8,
    imputation={"draws": 100, "chunk": 50, "noise": 1000, "latent_size": 16},
    latent_size=16,
    false_alarm_rate=0.05,
    tolerances={"score": 1e-5},
    provenance={"seed": 0, "run_id": None, "metrics": {"auroc": 0.97}},
    derived_from_rows=(),
    warnings=("column 'speed' is constant",),
)


def onnx_bytes(operator: str = "Identity") -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def npz_bytes(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


FILES = {
    "score.onnx": onnx_bytes(),
    "encode.onnx": onnx_bytes("Relu"),
    "calibration.npz": npz_bytes(score_score=np.arange(5.0), held_out=np.array([0.5])),
    "golden.npz": npz_bytes(x=np.zeros((2, 3), np.uint8)),
    "README.md": b"# digits\n",
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_unchecked(folder: Path, files: dict[str, bytes]) -> Path:
    """What an attacker hands over: valid hashes over any files at all."""
    hashes = {name: sha256(data).hexdigest() for name, data in files.items()}
    text = replace(UNSEALED, files=hashes).to_json()
    return write(folder, files | {MANIFEST: text.encode()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", FILES)


def test_what_was_sealed_is_what_opens(folder: Path) -> None:
    digest = seal(folder, UNSEALED)
    bundle = open_bundle(folder, expected_digest=digest)
    assert digest == sha256((folder / MANIFEST).read_bytes()).hexdigest() == bundle.digest
    assert bundle.manifest.files == {name: sha256(data).hexdigest() for name, data in FILES.items()}
    assert replace(bundle.manifest, files={}) == UNSEALED
    assert {name: bundle.read(name) for name in FILES} == FILES
    assert bundle.graph("encode") == FILES["encode.onnx"]
    assert bundle.arrays("calibration")["score_score"].tolist() == [0, 1, 2, 3, 4]
    assert bundle.arrays("golden")["x"].dtype == np.uint8


def test_the_digest_depends_on_the_contents_alone(folder: Path, tmp_path: Path) -> None:
    reversed_order = write(tmp_path / "other", dict(reversed(FILES.items())))
    reordered = replace(UNSEALED, tolerances=dict(reversed(UNSEALED.tolerances.items())))
    digest = seal(folder, UNSEALED)
    assert seal(reversed_order, reordered) == digest
    text = (folder / MANIFEST).read_text()
    assert text.endswith("}\n")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_an_open_bundle_outlives_its_folder_and_reads_each_file_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(folder, UNSEALED)
    opened: list[str] = []
    really_open = os.open

    def counted(path: Path, flags: int) -> int:
        opened.append(path.name)
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", counted)
    bundle = open_bundle(folder)
    assert sorted(opened) == sorted([*FILES, MANIFEST])
    for name in FILES:
        (folder / name).write_bytes(b"swapped")
    assert {name: bundle.read(name) for name in FILES} == FILES


def test_what_a_bundle_lacks_is_named(folder: Path) -> None:
    seal(folder, UNSEALED)
    bundle = open_bundle(folder)
    held = "README.md, calibration.npz, encode.onnx, golden.npz, score.onnx"
    for ask, name in ((bundle.graph, "impute.onnx"), (bundle.arrays, "bank.npz")):
        message = f"bundle {folder} has no '{name}'; it holds {held}"
        with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
            ask(name.partition(".")[0])


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_no_bundle(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "7"
    if kind == "empty":
        path.mkdir()
    if kind == "file":
        path.write_text("not a folder")
    message = f"no bundle at {path}: manifest.json is missing; make one with: vae-anomaly train"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        open_bundle(path)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(data)))
    kind = rng.integers(3)
    if kind == 0:
        flipped = data[at] ^ int(rng.integers(1, 256))
        return data[:at] + bytes([flipped]) + data[at + 1 :]
    return data[:at] if kind == 1 else data + bytes([int(rng.integers(256))])


def test_no_mutation_of_any_file_gets_through(folder: Path) -> None:
    rng = np.random.default_rng(20)
    digest = seal(folder, UNSEALED)
    for name in (*FILES, MANIFEST):
        original = (folder / name).read_bytes()
        for _ in range(40):
            mutated = mutate(original, rng)
            (folder / name).write_bytes(mutated)
            with pytest.raises(TamperedBundleError):
                open_bundle(folder, expected_digest=digest)
        (folder / name).write_bytes(original)
    open_bundle(folder, expected_digest=digest)


def test_a_changed_file_is_named_before_any_graph_is_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(folder, UNSEALED)
    monkeypatch.setattr(module, "check_graph", lambda name, data: pytest.fail(f"{name} was parsed"))
    # The last file by name, so that all graphs have been read by then.
    (folder / "score.onnx").write_bytes(b"evil")
    was, now = sha256(FILES["score.onnx"]).hexdigest()[:12], sha256(b"evil").hexdigest()[:12]
    message = (
        f"bundle file score.onnx was changed after export: its sha256 is {now}..., "
        f"the manifest says {was}...{AGAIN}"
    )
    with pytest.raises(TamperedBundleError, match=f"^{re.escape(message)}$"):
        open_bundle(folder)


@pytest.mark.parametrize("expected", ["0" * 64, ""])
def test_another_digest_is_refused_before_the_manifest_is_parsed(folder: Path, expected: str) -> None:
    seal(folder, UNSEALED)
    (folder / MANIFEST).write_bytes(b"not json")
    digest = sha256(b"not json").hexdigest()
    message = f"bundle {folder} has the digest {digest}, expected {expected}{AGAIN}"
    with pytest.raises(TamperedBundleError, match=f"^{re.escape(message)}$"):
        open_bundle(folder, expected_digest=expected)


def test_a_file_taken_away_is_named(folder: Path) -> None:
    seal(folder, UNSEALED)
    (folder / "golden.npz").unlink()
    message = f"bundle {folder} lacks golden.npz{AGAIN}"
    with pytest.raises(TamperedBundleError, match=f"^{re.escape(message)}$"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["evil.py", ".hidden", "score.onnx.data"])
def test_an_unlisted_file_is_refused(folder: Path, name: str) -> None:
    seal(folder, UNSEALED)
    (folder / name).write_bytes(b"")
    holds = f"bundle {folder} holds '{name}', which its manifest does not list"
    message = f"{holds}; remove it or fetch the bundle again"
    with pytest.raises(TamperedBundleError, match=f"^{re.escape(message)}$"):
        open_bundle(folder)


@pytest.mark.parametrize("kind", ["link", "link-to-nothing", "folder", "pipe", "manifest-link"])
def test_only_plain_files_may_lie_in_a_bundle(folder: Path, tmp_path: Path, kind: str) -> None:
    seal(folder, UNSEALED)
    name = {"manifest-link": MANIFEST, "link": "score.onnx"}.get(kind, "odd")
    if kind in ("link", "manifest-link"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    elif kind == "link-to-nothing":
        (folder / name).symlink_to("/nowhere")
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        os.mkfifo(folder / name)
    message = (
        f"bundle {folder} holds '{name}', a link, a folder or a device; remove it or fetch the bundle again"
    )
    with pytest.raises(TamperedBundleError, match=f"^{re.escape(message)}$"):
        open_bundle(folder)


@pytest.mark.parametrize("swapped_for", ["link", "pipe"])
def test_a_file_swapped_after_the_listing_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped_for: str
) -> None:
    seal(folder, UNSEALED)
    names = sorted(entry.name for entry in folder.iterdir())
    monkeypatch.setattr(module, "_names", lambda _: names)
    (folder / "README.md").rename(tmp_path / "README.md")
    if swapped_for == "link":
        (folder / "README.md").symlink_to(tmp_path / "README.md")
    else:
        os.mkfifo(folder / "README.md")
    with pytest.raises(
        BundleError, match=r"^bundle file '?README.md'? (cannot be read|was changed after export)"
    ):
        open_bundle(folder)


@pytest.mark.parametrize(
    "name",
    ["../score.onnx", "/etc/passwd", "a/b", "a\\b", ".hidden", "..", "", "C:x", "a\n", "manifest.json", "ä"],
)
def test_a_name_that_leads_elsewhere_is_refused(folder: Path, name: str) -> None:
    seal(folder, UNSEALED)
    data = json.loads((folder / MANIFEST).read_text())
    data["files"][name] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(data))
    message = (
        f"manifest.json lists the file {name!r}; expected plain names of letters, digits, dots, dashes "
        "and underscores, without folders"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        open_bundle(folder)


@pytest.mark.parametrize(("name", "limit"), [(MANIFEST, 8 * 2**20), ("score.onnx", 2**31)])
def test_an_absurd_size_is_refused_unread(folder: Path, name: str, limit: int) -> None:
    seal(folder, UNSEALED)
    os.truncate(folder / name, limit + 1)
    message = (
        f"bundle file '{name}' has {limit + 1} bytes, at most {limit} are read; export less in one bundle"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        open_bundle(folder)


def external_bytes() -> bytes:
    model = onnx.load_model_from_string(FILES["score.onnx"])
    tensor = TensorProto(name="w", dims=[3], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.initializer.append(tensor)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("hostile", "problem"),
    [
        (external_bytes(), "keeps weights outside its file; export it with its weights inside"),
        (
            onnx_bytes("Bernoulli"),
            "holds the random operator 'Bernoulli'; export it with noise as an input or a stored bank",
        ),
        (b"", "is not a whole ONNX model: it has no graph; fetch the bundle again"),
    ],
    ids=["external", "random", "empty"],
)
@pytest.mark.parametrize("name", ["score.onnx", "extra.onnx"])
def test_valid_hashes_do_not_excuse_a_hostile_graph(
    tmp_path: Path, name: str, hostile: bytes, problem: str
) -> None:
    folder = write_unchecked(tmp_path / "hostile", FILES | {name: hostile})
    message = f"^{re.escape(f'graph {name} {problem}')}$"
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(BundleError, match=message):
        seal(folder, UNSEALED)


class Trap:
    """Leaves a mark where it is unpickled."""

    sprung = False

    def __reduce__(self) -> tuple[object, ...]:
        return (setattr, (Trap, "sprung", True))


def zip_bytes(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            npz_bytes(x=np.array([Trap()], dtype=object)),
            "Object arrays cannot be loaded when allow_pickle=False",
        ),
        (pickle.dumps(Trap()), "File is not a zip file"),
        (b"", "File is not a zip file"),
        (FILES["golden.npz"][:-30], "File is not a zip file"),
        (zip_bytes("x.txt", b"text"), "'x.txt' is not an array"),
        (
            zip_bytes("x.npy", b"\x93NUMPY\x01\x00"),
            "EOF: reading array header length, expected 2 bytes got 0",
        ),
    ],
    ids=["object", "pickle", "empty", "cut", "text", "header"],
)
def test_arrays_are_plain_numbers(tmp_path: Path, data: bytes, problem: str) -> None:
    bundle = open_bundle(write_unchecked(tmp_path / "bundle", {"golden.npz": data}))
    message = f"bundle file golden.npz holds no plain arrays: {problem}; export the bundle again"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        bundle.arrays("golden")
    assert not Trap.sprung


def test_arrays_that_unpack_to_too_much_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(folder, UNSEALED)
    bundle = open_bundle(folder)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    with pytest.raises(BundleError, match=r"holds no plain arrays: it unpacks to 304 bytes; export"):
        bundle.arrays("calibration")


def test_seal_refuses_what_open_would_refuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(UNSEALED, false_alarm_rate=2.0)
    with pytest.raises(
        BundleError, match=r"^manifest.json: false_alarm_rate is 2.0, expected a number above 0"
    ):
        seal(folder, wrong)
    (folder / ".hidden").touch()
    with pytest.raises(BundleError, match=r"^manifest.json lists the file '.hidden'; expected plain names"):
        seal(folder, UNSEALED)
    (folder / ".hidden").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(module, "MAX_MANIFEST_BYTES", 10)
        with pytest.raises(
            BundleError, match=r"^bundle file 'manifest.json' has \d+ bytes, at most 10 are read"
        ):
            seal(folder, UNSEALED)
    assert not (folder / MANIFEST).exists()


def test_a_sealed_bundle_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    seal(folder, UNSEALED)
    message = f"bundle {folder} is sealed already; export to a new folder"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        seal(folder, UNSEALED)
    message = f"nothing to seal at {tmp_path / 'no'}: no such folder; export the graphs there first"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        seal(tmp_path / "no", UNSEALED)


def test_a_folder_that_may_not_be_read_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    message = f"bundle {folder} cannot be read: Permission denied; check its permissions"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        open_bundle(folder)
