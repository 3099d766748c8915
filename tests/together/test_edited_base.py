"""An edited folder knows its base: its options, its text, and what was prepared below its edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_world import FACT, save_model

from lmedit import load_lm, load_patch
from lmedit.errors import NotPreparedError
from lmedit.options import build_options
from lmedit.pipeline import ready
from lmedit.registry import load
from lmedit.stats import list_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

PREPARED = ("-o", "samples", "60", "-o", "tolerance", "null", "-o", "ridge", "0.1")
ROME = ("-o", "steps", "2", *PREPARED)


def apply_ft(lmedit: Run, model: Path, layer: int, out: str) -> None:
    flags = ("-o", "layer", layer, "-o", "learning_rate", "0.05", "-o", "steps", "2")
    done = lmedit("edit", "ft", *FACT, "-m", model, *flags, "--force", "-O", f"{out}.safetensors")
    assert done.exit_code == 0, done.stderr
    done = lmedit("apply", f"{out}.safetensors", "-m", model, "-O", out)
    assert done.exit_code == 0, done.stderr


def rome(lmedit: Run, model: Path | str, layer: int, *more: object) -> Result:
    flags = ("-m", model, "-o", "layer", layer, *ROME, "--force", "-O", "rome.safetensors")
    return lmedit("edit", "rome", *FACT, *flags, *more)


def test_tuned_options_stay_with_an_edited_folder(lmedit: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", seed=0)
    tuned = {"ft": {"options": {"layer": 2, "learning_rate": 0.01}, "evidence": {}}}
    (model / "lmedit-tuned.json").write_text(json.dumps(tuned), encoding="utf-8")
    apply_ft(lmedit, model, 1, "edited")
    apply_ft(lmedit, Path("edited"), 0, "twice")
    for folder in ("edited", "twice"):
        assert load_lm(folder).tuned == tuned
        done = lmedit("edit", "ft", *FACT, "-m", folder, "--force", "-O", "again.safetensors")
        assert done.exit_code == 0, done.stderr
        options = load_patch(Path("again.safetensors"))[1]["options"]
        assert (options["layer"], options["learning_rate"]) == (2, 0.01)


def test_an_edited_world_has_the_worlds_text_and_options(lmedit: Run) -> None:
    base = load_lm("demo")
    apply_ft(lmedit, Path("demo"), 2, "edited")
    lm = load_lm("edited")
    assert (lm.world, lm.text, lm.training) == ("demo", base.text, base.training)
    assert lm.tuned == base.tuned
    assert lm.name == "edited"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_statistics_below_an_edit_are_found(
    lmedit: Run, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    base = Path("base")
    load_lm(str(model), dtype=dtype).model.save_pretrained(base)
    load_lm(str(model)).tokenizer.save_pretrained(base)
    asked = ("prepare", "rome", "-m", base, "--corpus", text, "--layers", "1,2", *PREPARED)
    assert lmedit(*asked).exit_code == 0
    known = {one.id for one in list_statistics()}
    apply_ft(lmedit, base, 1, "edited")

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("it counts again")

    with monkeypatch.context() as patched:
        patched.setattr("lmedit.stats.store.second_moments", fails)
        for more in ((), ("--corpus", text)):  # the preparation, and the statistics themselves
            done = rome(lmedit, "edited", 1, *more)
            assert done.exit_code == 0, done.stderr
            assert "preparing" not in done.stderr
        (one,) = (s for s in list_statistics() if s.facts["layer"] == 1)
        assert one.of(load_lm("edited"), 1).tokens > 0
        done = rome(lmedit, "edited", 2, "--corpus", text)  # the edit is below this layer
        assert done.exit_code == 1
        assert "counts again" in done.stderr
    assert {one.id for one in list_statistics()} == known


def test_what_is_prepared_instead_is_said(lmedit: Run, model: Path, text: Path) -> None:
    lmedit("prepare", "rome", "-m", model, "--corpus", text, "-o", "layer", "1", *PREPARED)
    method, lm = load("rome"), load_lm(str(model))
    given = {"samples": 60, "tolerance": None, "ridge": 0.1}
    with pytest.raises(NotPreparedError, match=r"prepared: layer 1 \(.*corpus.txt\)\); run: "):
        ready(method, lm, build_options(method.method, {**given, "layer": 2}, lm))
    half = load_lm(str(model), dtype="bfloat16")
    with pytest.raises(NotPreparedError, match=r"prepared: number type float32 \(.*corpus.txt\)"):
        ready(method, half, build_options(method.method, {**given, "layer": 1}, half))
    with pytest.raises(NotPreparedError, match=r"with these options; run: lmedit prepare mend"):
        ready(load("mend"), lm, build_options(load("mend").method, {}, lm))


def test_no_statistics_are_made_where_none_are_needed(lmedit: Run, model: Path) -> None:
    flags = ("-m", model, "-o", "steps", "2", "-o", "covariance", "false", "--force")
    done = lmedit("edit", "rome", *FACT, *flags, "-O", "rome.safetensors")
    assert done.exit_code == 0, done.stderr
    done = lmedit("prepare", "rome", "-m", model, "-o", "covariance", "false")
    assert "needs no preparation with these options" in done.stderr
    traces = ("-o", "trace_samples", "1")
    done = lmedit("locate", "rome", *FACT, "-m", model, "--probe", *traces)
    assert done.exit_code == 0, done.stderr
    assert lmedit("locate", "mend", *FACT, "-m", model).exit_code == 0
    assert "preparing" not in done.stderr
    assert list_statistics() == []


JOINT = (
    "-o",
    "layers",
    "[1, 2]",
    "-o",
    "samples",
    "300",
    "-o",
    "damping",
    "0.1",
)
STEPS = ("-o", "steps", "2")


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("memit", (*JOINT, "-o", "tolerance", "null")),
        ("emmet", ("-o", "layer", "2", *JOINT[3:], "-o", "tolerance", "null")),
        ("alphaedit", (*JOINT[:-3], "-o", "tolerance", "null", "-o", "threshold_share", "0.2")),
    ],
)
def test_joint_methods_are_prepared_on_what_is_below_their_matrices(
    lmedit: Run, tmp_path: Path, method: str, own: tuple[str, ...]
) -> None:
    """An edit in a higher block leaves the preparation; an edit in a lower one does not."""
    model = save_model(tmp_path / "model", seed=0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The tower {n} stands by the river." for n in range(300)))
    done = lmedit("prepare", method, "-m", model, "--corpus", text, *own)
    assert done.exit_code == 0, done.stderr
    apply_ft(lmedit, model, 3, "higher")
    apply_ft(lmedit, model, 0, "lower")
    edit = ("edit", method, *FACT, *own, *STEPS, "--force", "-O", "patch.safetensors")
    found = lmedit(*edit, "-m", "higher")
    assert found.exit_code == 0, found.stderr
    refused = lmedit(*edit, "-m", "lower")
    assert refused.exit_code != 0 or "preparing on" in refused.stderr
    assert "preparing on" not in found.stderr
