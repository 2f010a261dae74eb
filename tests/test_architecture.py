"""The folders are the architecture; this test keeps them honest."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Who may import whom: the model knows nothing of training runs, and neither knows of HTTP.
ALLOWED = {
    "vae_anomaly": {"vae_anomaly"},
    "serving": {"vae_anomaly", "serving"},
    "pipelines": {"vae_anomaly", "serving", "pipelines"},
}
# Rooms of `vae_anomaly` that train and export; every other one is loaded to run a bundle.
NEEDS_TORCH = {
    "assembly",
    "base_estimator",
    "budget",
    "checkpoints",
    "devices",
    "encoding",
    "estimators",
    "export",
    "fitting",
    "graphs",
    "heavy_tails",
    "imputation",
    "imputer_fitting",
    "likelihoods",
    "log_columns",
    "metropolis",
    "missing",
    "mixed",
    "networks",
    "objectives",
    "random_masks",
    "scores",
    "sensitivity",
    "training",
    "trimming",
    "vae",
}
HEAVY = ("torch", "torchvision", "sklearn", "mlflow", "onnx", "onnxscript", "matplotlib", "scipy")
# The only modules that speak to MLflow; all others go through them.
TRACKING_ROOMS = {
    "pipelines/mlflow_store.py",
    "pipelines/tracking.py",
    "vae_anomaly/locate.py",
    "vae_anomaly/mlflow_access.py",
}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def dotted(path: Path) -> str:
    """A module's full name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room(path: Path) -> str:
    """The module, or the package with all its files, that lies directly in its top-level package."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


@cache
def imports(path: Path, *, everywhere: bool = True) -> set[str]:
    """Full names imported; only what runs at import unless ``everywhere``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if everywhere else at_import(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run at import: no function bodies, nothing for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_inward(package: str) -> None:
    for path in modules(package):
        found = {name.partition(".")[0] for name in imports(path)} & ALLOWED.keys()
        outward = found - ALLOWED[package]
        assert not outward, f"{path.relative_to(ROOT)} must not import {sorted(outward)}"


def test_only_the_tracking_rooms_import_mlflow() -> None:
    for path in (path for package in ALLOWED for path in modules(package)):
        speaks = any(name.partition(".")[0] == "mlflow" for name in imports(path))
        name = path.relative_to(ROOT).as_posix()
        assert not speaks or name in TRACKING_ROOMS, f"{name} must leave mlflow to {sorted(TRACKING_ROOMS)}"


@pytest.mark.parametrize("package", ["serving", "vae_anomaly"])
def test_what_runs_a_bundle_names_no_trainer_at_import(package: str) -> None:
    for path in modules(package):
        if package == "vae_anomaly" and room(path) in NEEDS_TORCH:
            continue
        found = {name.partition(".")[0] for name in imports(path, everywhere=package == "serving")}
        assert not found & {"torch", "torchvision", "sklearn"}, path.name


def test_the_rooms_that_need_torch_are_those_that_load_it() -> None:
    """A new room is torch-free unless it says otherwise here."""
    heavy = {room(path) for path in modules("vae_anomaly") if "torch" in loaded_by(path)}
    assert heavy == NEEDS_TORCH


def loaded_by(path: Path) -> set[str]:
    """Top-level packages that importing a module loads, through our own modules."""
    waiting, seen, found = [path], {path}, set()
    while waiting:
        for name in imports(waiting.pop(), everywhere=False):
            inner = ours(name)
            if inner is None:
                found.add(name.partition(".")[0])
            elif inner not in seen:
                seen.add(inner)
                waiting.append(inner)
    return found


def ours(name: str) -> Path | None:
    """The file of one of our modules, from ``package.module`` or ``package.module.name``."""
    if name.partition(".")[0] not in ALLOWED:
        return None
    for parts in (name.split("."), name.split(".")[:-1]):
        base = ROOT.joinpath(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def test_modules_form_no_circle() -> None:
    graph = {
        path: {inner for name in imports(path, everywhere=False) if (inner := ours(name)) not in (None, path)}
        for package in ALLOWED
        for path in modules(package)
    }
    order = list(TopologicalSorter(graph).static_order())
    assert len(order) == len(set(order)) >= len(graph)


def python(code: str, cwd: Path = ROOT, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COVERAGE_PROCESS_START": ""}
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_running_a_bundle_loads_no_trainer() -> None:
    """Importing each torch-free module, and all of serving, in one clean process."""
    names = ["vae_anomaly", "serving"]
    names += [
        f"vae_anomaly.{name}" for path in modules("vae_anomaly") if (name := room(path)) not in NEEDS_TORCH
    ]
    names += [dotted(path) for path in modules("serving")]
    wanted = [name for name in names if not name.endswith("__init__")]
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for name in {wanted!r}:\n"
        "    try:\n        import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        f"        assert (error.name or '').partition('.')[0] not in {(*HEAVY, *ALLOWED)!r}, (name, error)\n"
        f"    found = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    assert not found, (name, found)\n"
        "print('clean')"
    )
    done = python(code)
    assert done.stdout.strip() == "clean", done.stderr


BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'sklearn', 'mlflow', 'onnx'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Missing())
"""


def test_without_torch_a_bundle_runs_and_the_estimators_say_what_to_install(table_folder: Path) -> None:
    code = BLOCKED + (
        "import vae_anomaly, numpy as np\n"
        f"bundle = vae_anomaly.load_bundle({str(table_folder)!r}, device='cpu')\n"
        "assert np.isfinite(bundle.scores(np.zeros((3, 4)) + [0, -50, 0, 1.7e9])['score']).all()\n"
        "assert bundle.impute(np.full((2, 4), np.nan)).mean.shape == (2, 4)\n"
        "try:\n    vae_anomaly.VAEDetector\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = python(code)
    sentence = "VAEDetector needs sklearn, which is not installed; pip install 'vae-anomaly[train]'"
    assert done.stdout.strip() == f"MissingPackageError {sentence}", done.stderr


def test_public_names_are_lazy_listed_and_nothing_else() -> None:
    code = (
        "import sys, vae_anomaly\n"
        "assert 'numpy' not in sys.modules\n"
        "assert dir(vae_anomaly) == sorted(vae_anomaly.__all__)\n"
        "assert all(getattr(vae_anomaly, name) is not None for name in vae_anomaly.__all__)\n"
        "try:\n    vae_anomaly.Detector\n"
        "except AttributeError as error:\n    print(error)"
    )
    done = python(code)
    assert done.stdout.strip() == "module 'vae_anomaly' has no attribute 'Detector'", done.stderr


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A user's folder with packages of their own called like two of ours."""
    for name in ("serving", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user\\'s own package')\n")
    return tmp_path


def test_public_names_work_beside_a_users_own_folders(crowded: Path, table_folder: Path) -> None:
    code = (
        "from vae_anomaly import VAEDetector, VAEImputer, load_bundle\n"
        f"print(load_bundle({str(table_folder)!r}, device='cpu').kind)"
    )
    done = python(code, crowded)
    assert done.stdout.strip() == "vae", done.stderr


def test_the_command_works_beside_a_users_own_folders(crowded: Path) -> None:
    """As an installed script runs: the first place on the path is the script's, not the working folder."""
    script = crowded / "bin" / "vae-anomaly"
    script.parent.mkdir()
    script.write_text("import sys\nfrom pipelines.cli import main\nsys.exit(main())\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        cwd=crowded,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for verb in ("train", "score", "impute"):
        assert verb in done.stdout


def test_nothing_prints_or_pickles_in_the_libraries() -> None:
    for path in (path for package in ("vae_anomaly", "serving") for path in modules(package)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"print", "pickle.loads", "pickle.load", "torch.load", "eval", "exec"}, path.name
        assert not {"pickle", "joblib", "dill"} & {name.partition(".")[0] for name in imports(path)}, (
            path.name
        )
