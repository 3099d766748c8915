"""What is given is used, or refused, or a note says so: every flag of every command, every option.

The walks fail for a new flag until a line here says where it is used or how it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import Result
from test_early import no_model as no_model  # noqa: PLC0414  (a fixture)

from lmedit.cli import main
from lmedit.errors import OptionError
from lmedit.options import Method, Options, build_options
from lmedit.registry import resolve
from lmedit.tiny import tiny_lm
from lmedit.types import Prepared, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Run = Callable[..., Result]
FACT = ("--prompt", "{} is in", "--subject", "It", "--target", "Rome")

USED = {
    "--as": "what is written",
    "--base-id": "the card and the adapter name it",
    "--licence": "the card names it",
    "--push": "where the folder is uploaded",
    "--json": "the form of what is printed",
    "--out": "the place of what is written",
    "--model": "the model; see below for commands that need none",
    "--device": "where the model is loaded",
    "--dtype": "how the model is loaded",
    "--download": "a permission",
    "--force": "a permission",
    "--option": "checked by name and value, see below",
    "--plugin": "a method that is not named gives a note, see below",
    "--observe": "watches every hook; plan calls none",
    "--seed": "every method and every sample",
    "--compute": "refused if no method has the option",
    "--edit-timeout": "every hook of an edit",
    "--prepare-timeout": "every preparation",
    "--isolate": "how the work of a method is run",
    "--corpus": "a method without preparation gives a note or an error",
    "--join": "how the model is asked",
    "--chat": "how the model is asked",
    "--system": "refused without --chat",
    "--prompt": "the fact",
    "--subject": "the fact",
    "--target": "the fact",
    "--target-true": "its probability is reported; locate refuses it, see below",
    "--fact": "the fact; flags win, as documented",
    "--cases": "the cases",
    "--run": "the folder of results",
    "--workers": "the number of workers",
    "--executor": "who runs the workers",
    "--address": "refused by an executor without clusters",
    "--executor-option": "checked by name",
    "--in-context": "a row of the table",
    "--random-layer": "a row of the table",
    "--regime": "how edits pile up",
    "--preset": "the cases and metrics of a table",
    "--metrics": "columns of the table",
    "--recipe": "the description of a folder",
    "--html": "a page",
    "--format": "the form of what is printed",
    "--from": "the file to pull from",
    "--budget": "the number of settings, or the limits of an edit",
    "--base": "the base of an audit; see below for export",
    "--gate": "the limits of a model",
    "--check": "loads each method",
    "--tasks": "what is asked",
    "--abilities": "columns of the table",
    "--only": "the cases that are kept",
    "--command": "the judge",
    "--name": "the judge's name in the results",
    "--release": "the judge's version in the results",
    "--facts": "the facts",
    "--plot": "refused without a picture",
    "--probe": "measures; refused if the method has no probe",
    "--host": "where the playground listens",
    "--port": "where the playground listens",
    "--token": "what every request to the playground must show",
    "--methods": "what the playground offers",
    "--open": "a window of the browser",
    "--version": "prints",
    "--help": "prints",
    "--shard": "the part of the work",
}
"""Flags that every command uses that has them."""

UNUSED: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("edit", "--limit"): (("edit", "ft", *FACT, "--limit", "3"), "--limit is for --facts"),
    ("edit", "--include-path"): (
        ("edit", "ft", *FACT, "--include-path", "a"),
        "--include-path is for --budget",
    ),
    ("apply", "--include-path"): (
        ("apply", "none.safetensors", "-O", "a", "-m", "demo", "--include-path", "a"),
        "--include-path is for --gate",
    ),
    ("verify", "--include-path"): (
        ("verify", "none", "--include-path", "a"),
        "--include-path is for --gate",
    ),
    ("compare", "--include-path"): (
        ("compare", "ft", "--include-path", "a"),
        "--include-path is used only with --abilities",
    ),
    ("compare", "--ability-limit"): (
        ("compare", "ft", "--ability-limit", "3"),
        "--ability-limit is used only with --abilities",
    ),
    ("compare", "--wild-prompt"): (
        ("compare", "ft", "--wild-prompt", "qa"),
        "--wild-prompt is used only with --metrics wild",
    ),
    ("compare", "--seeds"): (
        ("compare", "ft", "--seeds", "0,1", "--seed", "3"),
        "--seed and --seeds name the seed twice",
    ),
    ("abilities", "--limit"): (("abilities", "demo", "--tasks", "a", "--limit", "0"), "--limit"),
    ("abilities", "--include-path"): (
        ("abilities", "demo", "--tasks", "a", "--include-path", "none"),
        "none",
    ),
    ("edit", "--near"): (
        ("edit", "memit", "--facts", "demo", "--near", "demo"),
        "--near is for one fact",
    ),
    ("edit", "--budget"): (
        ("edit", "memit", "--facts", "demo", "--budget", "KL<1"),
        "--budget is for one fact",
    ),
    ("edit", "--heldout"): (("edit", "ft", *FACT, "--heldout", "a"), "--heldout is for --budget"),
    ("apply", "--near"): (
        ("apply", "none.safetensors", "-O", "a", "-m", "demo", "--near", "demo"),
        "--near is for --gate",
    ),
    ("apply", "--heldout"): (
        ("apply", "none.safetensors", "-O", "a", "-m", "demo", "--heldout", "b"),
        "--heldout is for --gate",
    ),
    ("verify", "--near"): (("verify", "none", "--near", "demo"), "--near is for --gate"),
    ("verify", "--heldout"): (("verify", "none", "--heldout", "b"), "--heldout is for --gate"),
    ("locate", "--limit"): (("locate", "rome", *FACT, "--limit", "3"), "--limit is for --facts"),
    ("locate", "--pooling"): (
        ("locate", "rome", *FACT, "--pooling", "facts"),
        "--pooling is for --facts",
    ),
    ("compare", "--limit"): (("compare", "ft", "--limit", "0"), "--limit"),
    ("tune", "--limit"): (("tune", "ft", "--limit", "0"), "--limit"),
    ("compare", "--heldout"): (("compare", "ft", "--heldout", "a"), "only with --metrics health"),
    ("compare", "--heldout-lines"): (
        ("compare", "ft", "--heldout-lines", "40"),
        "only with --metrics health",
    ),
    ("compare", "--references"): (
        ("compare", "ft", "--references", "a"),
        "only with --metrics text",
    ),
    ("compare", "--batch"): (("compare", "ft", "--batch", "3"), "--regime batched"),
    ("compare", "--sizes"): (("compare", "ft", "--sizes", "1"), "only with another --regime"),
    ("compare", "--collapse"): (("compare", "ft", "--collapse", "10"), "another --regime"),
    ("compare", "--stop-on-collapse"): (
        ("compare", "ft", "--stop-on-collapse"),
        "only with another --regime",
    ),
    ("prepare", "--limit"): (("prepare", "rome", "--limit", "3"), "option 'limit'"),
    ("prepare", "--layers"): (
        ("prepare", "rome", "--layers", "1,2", "-o", "layer", "1"),
        "-o layer is not used beside --layers",
    ),
    ("prepare", "--workers"): (("prepare", "rome", "--workers", "2"), "--workers divides --layers"),
    ("export", "--base"): (
        ("export", "none", "-O", "a", "--base", "b.gguf"),
        "is for --format gguf-lora and gguf",
    ),
    ("export", "--prove"): (
        ("export", "none", "-O", "a", "--prove"),
        "is for --format gguf-lora and gguf",
    ),
    ("export", "--type"): (
        ("export", "none", "-O", "a", "--type", "F32"),
        "is for --format gguf",
    ),
    ("publish", "--rank"): (
        ("publish", "none", "-O", "a", "--as", "model", "--rank", "3"),
        "--rank is for adapters",
    ),
    ("publish", "--public"): (
        ("publish", "none", "-O", "a", "--public"),
        "--public is for --push",
    ),
    ("try", "--near"): (
        ("try", "none.safetensors", "a prompt", "--near", "demo"),
        "--near is for the facts of the patches",
    ),
    ("export", "--rank"): (("export", "none", "-O", "a", "--rank", "3"), "none"),
    ("stats import", "--layer"): (
        ("stats", "import", "a.safetensors", "--layer", "3"),
        "is for .npz files",
    ),
}
"""Flags that a command uses only beside others: a command line without the others."""
UNUSED |= {
    ("plan-run", flag): (("plan-run", *arguments[1:], "-O", "plan.json"), words)
    for (command, flag), (arguments, words) in UNUSED.items()
    if command == "compare"
}

ALSO = {
    "plan: observe": (("plan", "rome", "--observe", "timer"), "does not change the estimate"),
    "plan: seed": (("plan", "rome", "--seed", "0"), "does not change the estimate"),
    "plan: time": (("plan", "rome", "--edit-timeout", "3"), "does not change the estimate"),
    "plan: time to prepare": (("plan", "rome", "--prepare-timeout", "3"), "does not change the"),
    "plan-run: time": (
        ("plan-run", "ft", "-O", "a", "--edit-timeout", "3"),
        "--edit-timeout is not part of a plan: set LMEDIT_EDIT_TIMEOUT where lmedit work runs",
    ),
    "plan-run: time to prepare": (
        ("plan-run", "ft", "-O", "a", "--prepare-timeout", "3"),
        "--prepare-timeout is not part of a plan: set LMEDIT_PREPARE_TIMEOUT where",
    ),
    "plan-run: a probe's option": (
        ("plan-run", "rome", "-O", "a", "-o", "trace_noise", "3"),
        "trace_noise is used only by lmedit locate --probe",
    ),
    "prepare: time": (("prepare", "rome", "--edit-timeout", "3"), "nothing is edited"),
    "prepare: option": (
        ("prepare", "rome", "-o", "clamp", "3"),
        "-o clamp does not change what rome prepares",
    ),
    "prepare: seed": (("prepare", "rome", "--seed", "3"), "--seed does not change what rome"),
    "prepare: compute": (
        ("prepare", "memit", "--compute", "bfloat16"),
        "--compute does not change what memit",
    ),
    "prepare: corpus": (
        ("prepare", "mend", "--corpus", "demo", "-o", "checkpoint", "a.pt"),
        "--corpus is not used",
    ),
    "locate: answer": (
        ("locate", "ft", *FACT, "--target-true", "Oslo"),
        "--target-true is used only with --probe",
    ),
    "locate: answer of rome": (
        ("locate", "rome", *FACT, "--target-true", "Oslo"),
        "--target-true is used only with --probe",
    ),
    "locate: an option of the edit": (
        ("locate", "rome", *FACT, "-o", "clamp", "3"),
        "-o clamp does not change where rome would edit",
    ),
    "locate: a named option of the edit": (
        ("locate", "memit", *FACT, "-o", "memit.steps", "3"),
        "-o memit.steps does not change where memit would edit",
    ),
    "locate: seed": (("locate", "rome", *FACT, "--seed", "3"), "--seed is used only with --probe"),
    "locate: seed of ft": (("locate", "ft", *FACT, "--seed", "3"), "--seed does not change where"),
    "locate: compute": (
        ("locate", "rome", *FACT, "--compute", "bfloat16"),
        "--compute is used only with --probe",
    ),
    "locate: corpus": (
        ("locate", "rome", *FACT, "--corpus", "demo"),
        "--corpus is not used: rome needs no preparation here",
    ),
    "locate: a file of a trained editor": (
        ("locate", "mend", *FACT, "-o", "checkpoint", "a.pt"),
        "-o checkpoint does not change where mend would edit",
    ),
    "edit: no file of an editor": (
        ("edit", "mend", *FACT, "-o", "checkpoint", "none.pt"),
        "no file 'none.pt'; name a released editor's file",
    ),
    "edit: a probe's option": (
        ("edit", "rome", *FACT, "-o", "trace_window", "3"),
        "trace_window is used only by lmedit locate --probe",
    ),
    "compare: a probe's option": (
        ("compare", "rome", "-o", "trace_noise", "3"),
        "trace_noise is used only by lmedit locate --probe",
    ),
    "locate: a probe's option": (
        ("locate", "rome", *FACT, "-o", "trace_samples", "3"),
        "trace_samples is used only by lmedit locate --probe",
    ),
    "edit: no experts": (("edit", "ft", *FACT, "-o", "expert", "0"), "has no experts"),
    "edit: no experts of a layer": (
        ("edit", "ft", *FACT, "-o", "expert", "0", "-o", "layer", "1"),
        "block 1 of demo has no experts",
    ),
    "stats import: a model": (
        ("stats", "import", "a.safetensors", "-m", "demo"),
        "--model is for .npz files",
    ),
    "stats import: a type": (
        ("stats", "import", "a.safetensors", "--dtype", "float32"),
        "--dtype is for .npz files",
    ),
    "show: a plugin": (("show", __file__, "--plugin", "a.py"), "--plugin is for methods"),
}


def _flags(command: click.Command = main, path: str = "") -> Iterator[tuple[str, str]]:
    """Every command with every flag of it."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _flags(each, f"{path} {name}".strip())
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield path, max(parameter.opts, key=len)


def test_every_flag_has_a_line_here() -> None:
    flags = set(_flags())
    assert not {pair for pair in flags if pair not in UNUSED and pair[1] not in USED}
    assert set(UNUSED) <= flags
    assert set(USED) <= {flag for _, flag in flags} | {"--help"}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("case", [*UNUSED, *ALSO], ids=str)
def test_a_flag_that_is_not_used_is_refused(
    case: Any, lmedit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = ({**UNUSED, **ALSO})[case]
    done = lmedit(*arguments)
    assert done.exit_code in {1, 2}, done.output
    assert not isinstance(done.exception, AssertionError)
    assert words in " ".join(done.stderr.split())


def test_a_plugin_whose_method_is_not_named_is_told(
    lmedit: Run, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from lmedit import Method, hookimpl\n\n\n"
        "@hookimpl\ndef edit_describe():\n    return Method('mine', 'none')\n",
        encoding="utf-8",
    )
    done = lmedit("locate", "ft", *FACT, "-m", model, "--plugin", file)
    assert "its method 'mine' is not named" in done.stderr
    assert done.exit_code == 0, done.stderr


METHODS = {loaded.name: loaded.method for loaded in resolve((), (), lambda _: None)}
CLASHES: list[tuple[str, dict[str, Any], str]] = [
    ("rome", {"covariance": False, "ridge": 1}, "ridge"),
    ("rome", {"covariance": "false", "samples": "10"}, "samples"),
    ("rome", {"prefixes": "[]", "prefix_join": "x"}, "prefix_join"),
    ("rome", {"kl_factor": 0, "kl_position": "prompt_last"}, "kl_position"),
    ("rome", {"decay": 0, "decay_kind": "adam"}, "decay_kind"),
    ("rome", {"key_mode": "prompt", "key_text": "subject"}, "key_text"),
    ("memit", {"layers": [1, 2], "span": 2}, "span"),
    ("memit", {"layers": [1], "spread": "sqrt"}, "spread"),
    ("memit", {"expert": 1}, "expert"),
    ("memit", {"include_bare": "false"}, "include_bare"),
    ("emmet", {"include_bare": "false"}, "include_bare"),
    ("alphaedit", {"include_bare": "false"}, "include_bare"),
    ("emmet", {"moment_weight": 3}, "moment_weight"),
    ("alphaedit", {"threshold": 0.1, "threshold_share": 0.1}, "threshold_share"),
    ("alphaedit", {"ridge": 0.1, "ridge_share": 0.1}, "ridge_share"),
    ("locft-bf", {"expert": 0}, "expert"),
    ("lora", {"layer": 1, "layers": [2]}, "layer"),
    ("kn", {"threshold": 1, "adaptive_threshold": 0.1}, "adaptive_threshold"),
    ("kn", {"percentile": 9, "adaptive_threshold": 0.1}, "adaptive_threshold"),
    ("kn", {"refine": False, "share": 0.1}, "share"),
    ("kn", {"adapted": False, "limit": 0.1}, "limit"),
    ("kn", {"operation": "erase", "lambda_new": 3}, "lambda_new"),
    ("mend", {"checkpoint": "a.pt", "steps": 3}, "steps"),
    ("mend", {"checkpoint": "a.pt", "edit_rate": 3}, "edit_rate"),
    ("mend", {"checkpoint_order": "input_first"}, "checkpoint_order"),
    ("ke", {"checkpoint": "a.pt", "batch": 3}, "batch"),
]


def _recording(options: Any, read: set[str]) -> Any:
    """*options*, which note the fields that are read."""
    kind = type(options)

    def get(self: Any, name: str) -> Any:
        if name in kind.model_fields:
            read.add(name)
        return super(recording, self).__getattribute__(name)

    recording = type("Recording", (kind,), {"__getattribute__": get, "__module__": kind.__module__})
    made = recording.model_construct(**{n: getattr(options, n) for n in kind.model_fields})
    made.__pydantic_private__ = options.__pydantic_private__
    return made


@pytest.mark.parametrize("name", METHODS)
def test_locate_takes_only_options_that_it_uses(name: str) -> None:
    """What `edit_locate` and `edit_probe` read is what the options declare."""
    (loaded,) = (each for each in resolve([name], (), lambda _: None))
    kind, lm = loaded.method.options, tiny_lm()
    assert kind.locates is not None
    assert {*kind.locates, *kind.probes, *kind.probes_too} <= kind.model_fields.keys()
    options = build_options(loaded.method, {}, lm)
    request = Request(prompt="{} is in", subject="The tower", target_new="the sea")
    read: set[str] = set()
    seen = _recording(options, read)
    given = {"lm": lm, "request": request, "options": seen, "prepared": Prepared({}, {"free": {}})}
    location = loaded.manager.hook.edit_locate(**given)
    assert read <= {*kind.locates}, read
    read.clear()
    loaded.manager.hook.edit_probe(location=location, **given)
    assert read <= {*kind.locates, *kind.probes, *kind.probes_too}, read


PREPARED = [name for name, method in METHODS.items() if method.prepares_on]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("method", PREPARED)
def test_prepare_takes_only_options_that_it_uses(lmedit: Run, method: str) -> None:
    """The cache key of what it makes holds the options that it takes, or they change no value."""
    options = METHODS[method].options
    taken = {*options.prepares, *options.prepares_too}
    assert taken <= set(options.model_fields)
    assert not set(options.prepares) & set(options.prepares_too)
    for name in options.model_fields:
        for typed in (name, f"{method}.{name}"):
            done = lmedit("prepare", method, "-o", typed, "[[]]")
            said = f"-o {typed} does not change what {method} prepares" in done.stderr
            assert said is (name not in taken), (name, done.stderr)
            assert done.exit_code == 2 or not said, name


@pytest.mark.parametrize(("method", "given", "name"), CLASHES)
def test_an_option_without_effect_is_refused(method: str, given: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionError, match=f"{method}: {name} has no effect, because .*; remove"):
        build_options(METHODS[method], given)
    build_options(METHODS[method], {key: value for key, value in given.items() if key != name})


def test_presets_and_tuned_options_are_not_refused() -> None:
    """Only what the user types is refused: a preset may set what another option sets aside."""
    given = {"preset": "2022-02", "covariance": False}
    assert build_options(METHODS["rome"], given).model_dump()["covariance"] is False

    class Tuned(Options):
        size: int = 1

        def find_unused(self) -> dict[str, str]:
            return {"size": "it is a test"}

    lm = tiny_lm()
    lm.tuned = {"tuned": {"options": {"size": 3}}}
    assert build_options(Method("tuned", "none", Tuned), {}, lm).model_dump()["size"] == 3
    with pytest.raises(OptionError, match="size has no effect, because it is a test"):
        build_options(Method("tuned", "none", Tuned), {"size": 4}, lm)


@pytest.mark.parametrize("name", METHODS)
def test_what_unused_names_are_options(name: str) -> None:
    options = METHODS[name].options
    values: list[dict[str, Any]] = [{}, {"checkpoint": "a"}, {"covariance": False, "prefixes": ()}]
    values += [{"refine": False}, {"adapted": False}, {"operation": "erase"}, {"softness": 1.0}]
    for given in values:
        if given.keys() <= options.model_fields.keys():
            assert options.model_validate(given).find_unused().keys() <= options.model_fields.keys()
    assert set(options.probes) <= options.model_fields.keys()
