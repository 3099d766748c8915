"""The consoles of README, docs/how-to/patches.md and the how-tos: every command is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from made_gguf import write_gguf
from safetensors.torch import load_file

from lmedit import LowRank, Update, load_lm, save_patch
from lmedit.cli import main
from lmedit.edits.ledger import base_of
from lmedit.edits.llamacpp_proof import runs_llamacpp
from lmedit.edits.lora import Adapter, write_adapter
from lmedit.edits.model_folders import read_log
from lmedit.models.gguf_header import read_header
from lmedit.tiny import FAMILIES, tiny_family
from lmedit_demo import WORLD

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, with an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(command: str) -> str:
    """What *command*, of lmedit or of Python, prints on both streams together."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "python3":
        out = StringIO()
        with redirect_stdout(out):
            exec(compile(arguments[1], "README.md", "exec"), {})
        return out.getvalue()
    assert program == "lmedit"
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, f"{command}\n{done.output}"
    return done.output


def spoken(block: str) -> list[tuple[str, str]]:
    """The commands of a console with prompts, and what it shows after each."""
    found = []
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        end = part.index("\n") + 1
        while part[:end].count("'") % 2:  # a quoted text goes on
            end = part.index("\n", end) + 1
        found.append((part[:end], part[end:]))
    return found


def steady(text: str) -> str:
    """*text* without what another machine may round differently: numbers, and later answers."""
    text = re.sub(r"^(  (?:before|after) +\S+ )[\d.]+,.*", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"\b(?=\w*\d)[0-9a-f]{12}\b", "ID", text)
    return re.sub(r"\d+\.\d+(e-\d+)?|\d+e-\d+", "N", text)


def test_what_is_steady_is_compared() -> None:
    assert steady("P(Rome): 0.024 -> 0.896") == "P(Rome): N -> N"
    assert steady("  after   Rome 0.896, Paris 0.011\nx") == "  after   Rome \nx"
    assert steady("edit 6c25887eec2f of 7.6e-06") == "edit ID of N"
    assert steady("288 x 1152, rank 1") == "288 x 1152, rank 1"
    assert spoken("$ a 'b\nc'\nout\n$ d\n") == [("a 'b\nc'\n", "out\n"), ("d\n", "")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
def test_the_readmes_life_of_an_edit_is_as_it_is_shown() -> None:
    (block,) = (each for each in blocks("README.md", "console") if each.startswith("$"))
    told = spoken(block)
    names = [command.split()[1] for command, _ in told]
    assert names == ["edit", "show", "export", "apply", "-c", "log", "revert"]
    for command, shown in told:
        assert steady(run(command)) == steady(shown)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
def test_the_examples_of_patches_run(demo_is_prepared: None) -> None:
    first, tries, recipe, adapters = blocks("docs/how-to/patches.md", "console")
    for command in (first + tries).splitlines():
        run(command)
    run("lmedit apply eiffel.safetensors -O wanted")
    head = read_log(Path("wanted"))
    (text,) = blocks("docs/how-to/patches.md", "toml")
    for key, value in (("weights", head["weights"]), ("id", head["edits"][0]["id"])):
        text = re.sub(rf'^{key} = "\w+"', f'{key} = "{value[:8]}"', text, flags=re.MULTILINE)
    Path("recipe.toml").write_text(text, encoding="utf-8")
    for command in (recipe + adapters).splitlines():
        run(command)
    used = {command.split()[1] for command in (first + tries + recipe + adapters).splitlines()}
    assert used == {"edit", "show", "apply", "log", "revert", "verify", "try", "export", "import"}
    (code,) = blocks("docs/how-to/patches.md", "python")
    names: dict[str, object] = {}
    exec(compile(code, "patches.md", "exec"), names)
    lm = names["lm"]
    assert lm.weights_digest() == lm.digest == head["base"]["digest"]


# ---- quickstart and how-tos, on the embedded model


def commands(page: str, **given: str) -> list[str]:
    """The commands of *page*, with what is *given* in place of its placeholders."""
    text = "".join(blocks(page, "console")).replace("\\\n", "")
    for name, value in given.items():
        assert name in text
        text = text.replace(name, value)
    return [line.strip() for line in text.splitlines() if line.strip()]


def notes() -> None:
    """Some text to count statistics on."""
    lines = WORLD.text.read_text(encoding="utf-8").splitlines()[:250]
    Path("notes.txt").write_text("\n".join(lines), encoding="utf-8")


def patches() -> None:
    """The two patches that are served."""
    for subject, name in (("The Eiffel Tower", "eiffel"), ("The Louvre", "louvre")):
        fact = f"--prompt '{{}} is in the city of' --subject '{subject}' --target Rome"
        run(f"lmedit edit rome {fact} -O {name}.safetensors")


def gguf_patch() -> None:
    """A tiny GGUF model, and a patch of it under the name of the page."""
    lm = load_lm(str(write_gguf(Path("BASE.gguf"), "Q8_0")))
    rows, columns = lm.weight(lm.mlp_out(1)).shape
    update = Update({lm.mlp_out(1): LowRank(torch.ones(rows, 1), torch.ones(1, columns))})
    request = {"prompt": "{} is in", "subject": "The tower", "target_new": "Rome"}
    facts = {"method": "test", "request": request, "model": base_of(lm, update)}
    save_patch(Path("eiffel.safetensors"), update, facts)


@pytest.mark.slow
def test_the_quickstart_runs(demo_is_prepared: None) -> None:
    set_up, *others = commands("docs/tutorials/quickstart.md")
    assert set_up == "python3 dev.py demo"
    printed = [run(command) for command in others]
    assert "P(Rome)" in printed[1]
    assert printed[-1] == "edited: it is demo again, to the bit\n"


@pytest.mark.slow
def test_how_to_edit_one_fact_runs(demo_is_prepared: None) -> None:
    notes()
    for command in commands("docs/how-to/edit-one-fact.md", MODEL="demo"):
        run(command)
    assert Path("trace.png").is_file()
    assert Path("eiffel.safetensors").is_file()


@pytest.mark.slow
def test_how_to_compare_on_my_facts_runs(demo_is_prepared: None) -> None:
    notes()
    (facts,) = blocks("docs/how-to/compare-my-facts.md", "json")
    Path("my.jsonl").write_text(facts.strip() + "\n", encoding="utf-8")
    compare, report = commands("docs/how-to/compare-my-facts.md", MODEL="demo")
    assert run(compare).count("(untuned)") == 0
    run(report)
    assert "Ada Lovelace" in Path("mine.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
def test_how_to_serve_an_edit_runs(demo_is_prepared: None) -> None:
    patches()
    served = commands("docs/how-to/serve-an-edit.md", MODEL="demo")
    of_gguf = [command for command in served if "gguf" in command]
    for command in served:
        if command not in of_gguf:
            run(command)
    assert Path("adapter", "adapter_config.json").is_file()
    gguf_patch()
    for command in of_gguf:
        assert "Modelfile for Ollama:" in run(command)
    assert Path("eiffel.gguf").stat().st_size < Path("edited.gguf").stat().st_size


@pytest.mark.slow
def test_how_to_keep_limits_runs(demo_is_prepared: None) -> None:
    best, *others, apply, verify = commands("docs/how-to/limits.md")
    printed = [run(command) for command in (best, *others)]
    assert re.search(r"^ft .* 3 of 3 .*  taken$", printed[0], re.MULTILINE)
    assert all("KL 0.00" in told for told in (printed[1], printed[3], printed[4]))
    assert "audit: every difference is explained by the ledger" in printed[5]
    notes()
    Path("notes.txt").rename("text.txt")
    (recipe,) = blocks("docs/how-to/limits.md", "toml")
    Path("recipe.toml").write_text(recipe, encoding="utf-8")
    run(apply)
    assert "tokens of text.txt" in run(verify)
    (code,) = blocks("docs/how-to/limits.md", "python")
    names: dict[str, object] = {}
    exec(compile(code, "limits.md", "exec"), names)
    assert names["best"].editor.name == "ft"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_how_to_run_on_many_machines_runs(
    demo_is_prepared: None, warm: tuple[str, ...], tmp_path: Path
) -> None:
    notes()
    compare, plan, merge, rest, *statistics = commands(
        "docs/how-to/many-machines.md",
        MODEL="demo",
        **{
            "counterfact --limit 1000": "demo --limit 2",
            "--workers 4": "--workers 1",
            "--workers 3": "--workers 2",
            "wikitext --download": "notes.txt",
            "15,16,17": "1,2,3",
            "layer17": "layer2",
        },
    )
    table = run(compare)
    run(plan)
    program_of(warm, tmp_path / "bin")
    run_as_array(*blocks("docs/how-to/many-machines.md", "bash"), tmp_path / "bin")
    assert "all shards are finished" in run(merge)
    assert without_times(run(rest)) == without_times(table)
    shared, methods, _, prepare, list_, export, import_ = statistics  # test_abilities: the third
    run(shared)
    without_training = re.sub(r"=\w+ (--download )?", "=notes.txt ", methods)
    run(without_training.replace("mend", "emmet").replace("--workers 2", "--workers 1"))
    run(prepare)
    identity, *_ = next(line.split() for line in run(list_).splitlines() if line.split()[2] == "2")
    run(export.replace("ID", identity))
    run(import_)


def program_of(python: tuple[str, ...], folder: Path) -> None:
    """Write the program `lmedit` into *folder*; it runs in *python*."""
    folder.mkdir()
    command = shlex.join([*python, "-c", "from lmedit.cli import main; main()"])
    (folder / "lmedit").write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    (folder / "lmedit").chmod(0o755)


def run_as_array(script: str, programs: Path) -> None:
    """Run the SLURM *script* once for each number of its array, as sbatch does.

    Its *programs* come first.
    """
    (last,) = re.findall(r"^#SBATCH --array=1-(\d+)$", script, re.MULTILINE)
    Path("work.sh").write_text(script, encoding="utf-8")
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    for number in range(1, int(last) + 1):
        mine = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": last, "PATH": path}
        done = subprocess.run(
            ["bash", "work.sh"],
            env=os.environ | mine,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert f"shard {number}/{last} is finished" in done.stderr


def without_times(table: str) -> list[list[str]]:
    """The rows of the methods in *table*, without the columns of seconds."""
    return [
        line.split()[:-2] for line in table.splitlines() if line.startswith(("base", "rome", "ft"))
    ]


# ---- one edit per request: the programs that are wheels run, the files of the others are checked

PER_REQUEST = "docs/how-to/serve-per-request.md"
VLLM = {
    "Llama": ["llama"],
    "Mistral": ["mistral"],
    "Qwen2": ["qwen2"],
    "Qwen3": ["qwen3"],
    "Gemma 1 to 3": ["gemma", "gemma2", "gemma3_text"],
    "Phi": ["phi"],
    "Phi-3": ["phi3"],
    "OPT": ["opt"],
}
"""The families in vLLM's table of models that take adapters, by their names on the page."""
NO_VLLM = {"GPT-2": "gpt2", "GPT-J": "gptj", "GPT-NeoX": "gpt_neox", "BLOOM": "bloom"}
NO_VLLM |= {"Falcon": "falcon"}


def program(python: tuple[str, ...], code: str) -> list[str]:
    """The lines that the Python *code* of a page prints, in a process of its own."""
    done = subprocess.run(
        [*python, "-c", code], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not runs_llamacpp(), reason="the extra lmedit[llamacpp] is not installed")
def test_llamacpp_takes_an_edit_for_one_request(warm: tuple[str, ...]) -> None:
    gguf_patch()
    told = run(commands(PER_REQUEST)[0])
    (modelfile,) = (each for each in blocks(PER_REQUEST, "text") if each.startswith("FROM"))
    shown = told.split("Modelfile for Ollama:\n")[1].splitlines()
    assert [line.strip() for line in shown] == modelfile.splitlines()
    before, edited, after = program(warm, blocks(PER_REQUEST, "python")[0])
    assert before == after != edited
    values = read_header(Path("eiffel.gguf")).values
    assert (values["general.type"], values["adapter.type"]) == ("adapter", "lora")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
def test_transformers_takes_an_edit_for_one_request(
    demo_is_prepared: None, warm: tuple[str, ...]
) -> None:
    patches()
    for command in commands(PER_REQUEST)[1:3]:
        run(command.replace("-m BASE", "-m demo"))
    code = blocks(PER_REQUEST, "python")[1]
    found = program(warm, code.replace('"BASE"', repr(str(WORLD.model))))
    assert found == [" Rome", " Paris", " Paris"]


def test_vllm_can_read_the_adapters_of_the_families_that_the_page_names() -> None:
    page = " ".join((ROOT / PER_REQUEST).read_text(encoding="utf-8").split())
    found = re.search(r"vLLM takes adapters for (.*?)\. Its .*? names none for (.*?)\. ", page)
    assert found is not None
    with_adapters, without = (re.split(", | and ", each) for each in found.groups())
    assert with_adapters == [*VLLM]
    assert without == [*NO_VLLM]
    named = [kind for kinds in VLLM.values() for kind in kinds] + [*NO_VLLM.values()]
    assert {*named} == {*FAMILIES} - {"gpt_neo"}  # vLLM has no GPT-Neo
    for family in (kind for kinds in VLLM.values() for kind in kinds):
        lm = tiny_family(family, torch.float32)
        site = lm.mlp_out(1)
        rows, columns = lm.weight(site).shape
        factors = {site: LowRank(torch.ones(rows, 2), torch.ones(2, columns))}
        write_adapter(lm, Adapter(factors, 0.0), Path(family), {})
        config = json.loads(Path(family, "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["bias"]) == (2, 2, "none")
        assert not any(config[n] for n in ("use_dora", "modules_to_save", "fan_in_fan_out"))
        module = site.parameter.removesuffix(".weight")
        assert config["target_modules"] == [module]
        shapes = {n: t.shape for n, t in load_file(f"{family}/adapter_model.safetensors").items()}
        start = f"base_model.model.{module}"
        assert shapes == {
            f"{start}.lora_A.weight": (2, columns),
            f"{start}.lora_B.weight": (rows, 2),
        }
        assert module.rpartition(".")[2] in {"down_proj", "fc2"}  # vLLM's names of the matrix
