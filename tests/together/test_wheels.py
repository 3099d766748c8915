"""Every distribution builds as a wheel, and each plugin works alone beside the core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from small_world import record

BRIEF = {"steps": "2", "validate_every": "1", "batch": "4"}
TRAINED = {
    "mend": {"rank": "4", **BRIEF},
    "ke": {"hidden": "4", "condition": "4", **BRIEF},
}
"""Options of the methods that are trained before they edit."""
ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir())
METHODS = {"rome": {"rome"}, "ft": {"ft", "ft-l"}, "kn": {"kn"}, "mend": {"mend"}, "ke": {"ke"}}


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of all members."""
    out = tmp_path_factory.mktemp("wheels")
    for member in ("core", "demo", *(f"plugins/{name}" for name in PLUGINS)):
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", out, ROOT / member)
    return out


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All installed packages except our own, as links in a folder."""
    out = tmp_path_factory.mktemp("libraries")
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if "lmedit" not in item.name:
            (out / item.name).symlink_to(item)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_works_alone_beside_the_core(
    wheels: Path, libraries: Path, tmp_path: Path, plugin: str, model: Path, text: Path, cases: Path
) -> None:
    installed = tmp_path / "installed"
    chosen = [next(wheels.glob(f"{name}-0*.whl")) for name in ("lmedit", f"lmedit_{plugin}")]
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
        "--target", installed, *chosen)  # fmt: skip
    # -S keeps this environment's own site-packages, with the editable installs, out of sight.
    lmedit = (sys.executable, "-S", "-c", "from lmedit.cli import main; main()")
    path = {"PYTHONPATH": f"{installed}{os.pathsep}{libraries}"}
    found = json.loads(run(*lmedit, "methods", "--check", "--json", **path))
    assert {entry["name"]: entry["state"] for entry in found} == dict.fromkeys(
        METHODS[plugin], "ok"
    )
    small = [part for option in TRAINED.get(plugin, {}).items() for part in ("-o", *option)]
    if small:
        training = tmp_path / "training.json"
        training.write_text(json.dumps([record(n, f"The tower {n}") for n in range(30)]))
        run(*lmedit, "prepare", plugin, "-m", model, "--corpus", training, *small, **path)
    printed = run(
        *lmedit, "compare", "--cases", cases, "-m", model, "--corpus", text, "--json",
        "--limit", 1, *small, **path,
    )  # fmt: skip
    rows = json.loads(printed)["rows"]
    assert {row["method"] for row in rows} == {"base", *METHODS[plugin]}
    assert all(row["n_failed"] == 0 for row in rows)


def test_every_plugin_is_in_this_test() -> None:
    assert set(METHODS) == set(PLUGINS)


@pytest.mark.slow
def test_the_demos_wheel_holds_the_world(wheels: Path) -> None:
    (wheel,) = wheels.glob("lmedit_demo-*.whl")
    listed = run(sys.executable, "-m", "zipfile", "-l", wheel)
    for file in (
        "model/model.safetensors",
        "model/tokenizer.json",
        "counterfact.json",
        "text.txt",
        "training.json",
        "model/lmedit-prepared/mend.safetensors",
        "model/lmedit-prepared/ke.safetensors",
    ):
        assert f"lmedit_demo/{file}" in listed


@pytest.mark.slow
def test_the_cores_wheel_holds_the_template(wheels: Path) -> None:
    (wheel,) = wheels.glob("lmedit-0*.whl")
    listed = run(sys.executable, "-m", "zipfile", "-l", wheel)
    template = ROOT / "core" / "src" / "lmedit" / "template"
    files = [p for p in template.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(files) == 9
    for file in files:
        assert f"lmedit/{file.relative_to(template.parent).as_posix()}" in listed
