"""Every distribution builds as a wheel, and each works alone, beside the core, and with all."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import isolated
import pytest
from once import made_once

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[isolated.Material]:
    """Wheels, libraries, what to try them on, and a server."""
    folder = made_once(tmp_path_factory, "material", isolated.Material.make)
    with isolated.Material(folder).serve() as found:
        yield found


def test_the_core_works_without_any_method(material: isolated.Material, tmp_path: Path) -> None:
    isolated.core_alone(material, tmp_path / "environment")


@pytest.mark.parametrize("plugin", isolated.PLUGINS)
def test_a_plugin_works_alone_beside_the_core(
    material: isolated.Material, tmp_path: Path, plugin: str
) -> None:
    isolated.plugin_alone(material, tmp_path / "environment", plugin, laws=True)


def test_a_plugin_is_gone_alone_when_uninstalled(
    material: isolated.Material, tmp_path: Path
) -> None:
    isolated.all_together(material, tmp_path / "environment")


def test_the_demos_wheel_holds_the_world(material: isolated.Material) -> None:
    listed = isolated.run(sys.executable, "-m", "zipfile", "-l", material.wheel("demo"))
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


def test_the_cores_wheel_holds_the_template(material: isolated.Material) -> None:
    listed = isolated.run(sys.executable, "-m", "zipfile", "-l", material.wheel("core"))
    template = isolated.ROOT / "core" / "src" / "lmedit" / "actions" / "template"
    files = [p for p in template.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(files) == 9
    for file in files:
        assert f"lmedit/actions/{file.relative_to(template.parent).as_posix()}" in listed
