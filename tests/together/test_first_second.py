"""What a command imports, and that quick imports change nothing but the time."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from lmedit.cli import main
from lmedit.values.adam import Adam

if TYPE_CHECKING:
    from pathlib import Path

FACT = ("--prompt", "{} is in the city of", "--subject", "The Eiffel Tower", "--target", "Rome")
HEAVY = (
    "accelerate",
    "datasets",
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "starlette",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.trainer",
)
"""Modules that an edit of one fact does not need."""
FOR_WORDS = ("torch", "transformers", "numpy", "pydantic", "lmedit.models", "lmedit.plan")
"""Modules that a command does not need if it only prints words."""
LISTED = """
import atexit, json, sys
def tell():
    marked = [n for n, m in sys.modules.items() if "__lmedit_reference__" in vars(m)]
    print(json.dumps([sorted(sys.modules), marked]), file=sys.stderr)
atexit.register(tell)
from lmedit.cli import main
main{how}()
"""
QUICK = "from lmedit.cli.quick_imports import install; install()\n"


def run(code: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A process that ran *code*."""
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done


def imported(*args: str, how: str = "", cwd: Path | None = None) -> tuple[set[str], list[str]]:
    """The modules that a command imported, and the references among them."""
    told = run(LISTED.format(how=how), *args, cwd=cwd).stderr.splitlines()[-1]
    modules, marked = json.loads(told)
    return set(modules), marked


def test_an_edit_imports_no_heavy_module(tmp_path: Path) -> None:
    """Also no reference stays in the table of modules. The plain imports have the heavy ones."""
    modules, marked = imported("edit", "ft", *FACT, "-O", "a.safetensors", cwd=tmp_path)
    assert not modules.intersection(HEAVY)
    assert not marked
    plain, _ = imported("edit", "ft", *FACT, "-O", "b.safetensors", how=".main", cwd=tmp_path)
    assert {"torch._dynamo", "torch.distributed.tensor"} < plain
    quick, slow = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert quick.keys() == slow.keys()
    assert all(torch.equal(quick[name], slow[name]) for name in quick)


@pytest.mark.parametrize("name", ["", "methods", *main.commands])
def test_words_need_no_model(name: str) -> None:
    args = [name] if name == "methods" else [*name.split(), "--help"]
    modules, _ = imported(*args)
    assert not modules.intersection(FOR_WORDS)


def test_a_library_sees_plain_imports() -> None:
    """Only the program's own process imports quickly."""
    run(
        "import sys, lmedit\n"
        "from lmedit.cli import main\n"
        "from click.testing import CliRunner\n"
        "assert CliRunner().invoke(main, ['methods']).exit_code == 0\n"
        "lmedit.load_lm('demo')\n"
        "from lmedit.cli.quick_imports import Finder\n"
        "assert not any(isinstance(each, Finder) for each in sys.meta_path)\n"
        "from scipy.optimize import linear_sum_assignment\n"
        "from transformers.loss import loss_for_object_detection as loss\n"
        "assert loss.linear_sum_assignment is linear_sum_assignment\n"
    )


def test_names_are_found_when_they_are_used() -> None:
    """A reference acts as its object; the modules are the plain ones for everybody else."""
    run(
        QUICK + "import sys, torch\n"
        "disable = torch.compiler.disable\n"
        "import transformers.modeling_utils, transformers.generation.utils\n"
        "from transformers.loss import loss_for_object_detection as loss\n"
        "from transformers.distributed import sharding_utils, utils\n"
        "assert torch.compiler.disable is disable\n"
        "assert 'scipy' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
        "assert not isinstance(torch.ones(1), sharding_utils.DTensor)\n"
        "assert not utils.is_dtensor(torch.ones(1))\n"
        "rows, columns = loss.linear_sum_assignment(torch.eye(3).numpy() * -1)\n"
        "assert rows.tolist() == columns.tolist() == [0, 1, 2]\n"
        "from scipy.optimize import linear_sum_assignment as plain\n"
        "assert loss.linear_sum_assignment == plain\n"
        "from torch.distributed.tensor import DTensor\n"
        "assert type(DTensor) is not type(loss.linear_sum_assignment)\n"
        "assert issubclass(DTensor, sharding_utils.DTensor)\n"
        "class Sharded(sharding_utils.DTensor): pass\n"
        "assert DTensor in Sharded.__mro__\n"
    )


def test_the_compiler_learns_of_its_functions_later() -> None:
    """Decorators that waited for the compiler do their work when it is imported."""
    run(
        QUICK + "import torch\n"
        "import transformers.modeling_utils\n"
        "from lmedit.cli.quick_imports import MARKED\n"
        "waiting = [fn for name, fn in MARKED if name == 'allow_in_graph']\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item() == 2\n"
        "assert not MARKED\n"
        "from torch._dynamo import trace_rules\n"
        "assert all(id(f) in trace_rules._allowed_callable_ids.function_ids for f in waiting)\n"
    )


def test_the_exports_of_transformers_are_the_same() -> None:
    """Reading only the end of each file finds what transformers finds."""
    listed = (
        "import json, sys, transformers\n"
        "print(json.dumps([sorted(dir(transformers)), sorted(dir(transformers.models))]))\n"
    )
    assert run(QUICK + listed).stdout == run(listed).stdout


def test_a_failing_quick_import_becomes_a_plain_one(tmp_path: Path) -> None:
    """A package named transformers that only works with the real module is imported plainly."""
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from torch.distributed.tensor import DTensor\n"
        "if not isinstance(DTensor, type): raise TypeError\n"
    )
    run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + QUICK + "import transformers\n"
        "from torch.distributed.tensor import DTensor\n"
        "assert transformers.DTensor is DTensor and transformers.__file__.startswith(sys.path[0])\n"
    )


@pytest.mark.parametrize("fused", [False, True])
def test_adam_has_the_bits_of_torch(fused: bool) -> None:
    """Also if a parameter has no gradient in a step."""
    torch.manual_seed(0)
    ours = [torch.randn(3, 4), torch.randn(5)]
    theirs = [each.clone().requires_grad_() for each in ours]
    adam = Adam(ours, 1e-2, decay=0.1, fused=fused)
    plain = torch.optim.Adam(theirs, lr=1e-2, weight_decay=0.1, fused=fused)
    for step in range(6):
        chosen = [0, 1] if step % 2 else [1]
        gradients = [torch.randn_like(ours[i]) for i in chosen]
        adam.step([ours[i] for i in chosen], gradients)
        plain.zero_grad()
        for i, gradient in zip(chosen, gradients, strict=True):
            theirs[i].grad = gradient
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
