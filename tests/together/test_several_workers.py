"""`lmedit prepare --layers` and `lmedit abilities` give the same with several workers."""

from __future__ import annotations

import json
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from small_world import record

from lmedit import LowRank, Update, load_lm, save_patch
from lmedit.actions.abilities import AbilityStates, load_states, measure_abilities
from lmedit.actions.preparing import Preparing, load_preparing
from lmedit.edits.ledger import base_of
from lmedit.errors import RunError
from lmedit.executors import Crew, Group, Job, Reply
from lmedit.executors.processes import AHEAD, Child, Children
from lmedit.executors.sharing import place_files
from lmedit.executors.waiting import Waiting
from lmedit.metrics.ability_tasks import Wanted
from lmedit.plan import Plan
from lmedit.storage.tensors import PREPARED, load_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

CHOICE = """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
"""
CLOZE = """output_type: loglikelihood
doc_to_target: " {{choices[label]}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
"""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the driver itself does, if other processes have loaded before it begins."""
    done: list[str] = []
    add = Children.add

    def add_and_wait(self: Children, count: int) -> None:
        add(self, count)
        assert all(child.line.poll(120) for child in self.children)

    monkeypatch.setattr(Children, "add", add_and_wait)
    for kind in (Preparing, AbilityStates):

        def do(self: Any, group: Group, do: Any = kind.do) -> Any:
            done.extend(group.wanted)
            return do(self, group)

        monkeypatch.setattr(kind, "do", do)
    return done


@pytest.fixture
def prepare(
    lmedit: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """Prepare three layers in the cache *name*; the tensors and the facts of each."""

    def prepare_in(name: str, *flags: object) -> list[Any]:
        monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / name))
        call = ("prepare", "rome", "-m", model, "--corpus", text, "--layers", "2,0,1", "--json")
        done = lmedit(*call, *flags)
        assert done.exit_code == 0, done.stderr
        found = []
        for one in json.loads(done.stdout):
            path = Path(one["path"])
            tensors, facts = load_tensors(path, PREPARED)
            del facts["facts"]["seconds"]
            assert {**one["facts"], "seconds": 0} == {**facts["facts"], "seconds": 0}
            found.append((path.name, {n: t.numpy().tobytes() for n, t in tensors.items()}, facts))
        return found

    return prepare_in


def test_layers_of_several_workers_are_those_of_one(
    prepare: Callable[..., list[Any]], driver: list[str]
) -> None:
    """Bit for bit. If all text is read, they are those of one pass over all layers, too."""
    alone = prepare("alone", "--executor", "local")
    assert [facts["facts"]["layer"] for _, _, facts in alone] == [2, 0, 1]
    assert len(driver) == 3
    driver.clear()
    assert prepare("several", "--workers", 2) == alone
    assert len(driver) in {1, 2}
    whole = ("-o", "tolerance", "null")
    assert prepare("each", "--executor", "local", *whole) == prepare("pass", *whole)


def test_what_is_prepared_is_not_prepared_again(
    prepare: Callable[..., list[Any]], driver: list[str]
) -> None:
    first = prepare("one", "--executor", "local")
    driver.clear()
    assert prepare("one", "--executor", "local") == first
    assert driver == []


def test_a_worker_elsewhere_writes_no_preparation_and_hands_back_statistics(
    lmedit: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "there"))
    plan = Plan(methods=("rome",), model=str(model), corpora=(str(text),))
    worker = load_preparing(plan, [{"layer": 1}], ("the driver", "its cache"))
    (key,) = worker.tasks
    files = worker.do(Group("method 'rome'", (key,), (key,))).files
    assert list((tmp_path / "there" / "prepared").glob("*.safetensors")) == []
    assert [name.split("/")[0] for name in files] == ["prepared", "statistics"]
    with pytest.raises(RunError, match="rome: a worker has another model, text or version"):
        worker.do(Group("method 'rome'", ("other",), ("other",)))
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "here"))
    assert place_files(files, files.__getitem__) == [*files]
    flags = ("-m", model, "--corpus", text, "-o", "layer", "1", "--json")
    found = json.loads(lmedit("prepare", "rome", *flags).stdout)
    assert Path(found["path"]).read_bytes() == files[key]
    assert len(json.loads(lmedit("stats", "list", "--json").stdout)) == 1


def test_several_methods_are_prepared_on_ray_as_here(
    lmedit: Run,
    model: Path,
    text: Path,
    on_ray: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Statistics of two layers and the training of an editor, each a task; none without need."""
    training = tmp_path / "training.json"
    training.write_text(json.dumps([record(n, f"The tower {n}") for n in range(20)]))
    methods = ("rome", "mend", "ft")
    small = ("-o", "mend.steps", 2, "-o", "mend.batch", 2, "-o", "rome.tolerance", "null")
    corpora = ("--corpus", f"rome={text}", "--corpus", f"mend={training}")
    call = ("prepare", *methods, "-m", model, *corpora, *small, "--layers", "0,1", "--json")
    made = {}
    for name, flags in (("here", ()), ("ray", ("--executor", "ray"))):
        monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / name))
        done = lmedit(*call, *flags)
        assert done.exit_code == 0, done.stderr
        assert "ft needs no preparation" in done.stderr
        found = [each for each in json.loads(done.stdout) if each["facts"]]
        made[name] = [(each["method"], _tensors_in(Path(each["path"]))) for each in found]
    assert [method for method, _ in made["ray"]] == ["rome", "rome", "mend"]
    assert made["ray"] == made["here"]
    assert len(on_ray) in {1, 3}
    assert lmedit(*call, "--executor", "ray").exit_code == 0
    assert len(on_ray) in {1, 3}, "they are stored"


def _tensors_in(path: Path) -> dict[str, bytes]:
    tensors, _ = load_tensors(path, PREPARED)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_an_error_of_a_worker_and_wrong_use_are_one_line(
    lmedit: Run, model: Path, text: Path
) -> None:
    call = ("prepare", "rome", "-m", model, "--corpus", text, "-o", "samples", "1")
    done = lmedit(*call, "--layers", "1", "--executor", "local")
    assert done.exit_code == 1
    assert "keys are too few" in done.stderr
    done = lmedit("prepare", "rome", "-m", model, "--corpus", text, "--workers", "2")
    assert done.exit_code == 2
    assert "--workers divides --layers" in done.stderr
    many = ("prepare", "rome", "memit", "-m", model, "--corpus", text)
    assert "--plot draws the training of one method" in lmedit(*many, "--plot", "a.svg").stderr
    assert "no option 'limit'" in lmedit(*many, "--limit", "2").stderr


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two tasks of four documents."""
    names = ["tower", "boat", "old river", "small tower in the morning"]
    choices = ["sea", "river", "city"]
    lines = [
        {"prompt": f"The {name} is in the", "choices": choices, "label": n % 3}
        for n, name in enumerate(names)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    head = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
    head = f'{head}{data}\ntest_split: test\ndoc_to_text: "{{{{prompt}}}}"\n'
    for name, own in (("one", CHOICE), ("two", CLOZE)):
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{own}", encoding="utf-8")
    return folder


@pytest.fixture
def patches(model: Path) -> tuple[Path, ...]:
    """Two patches; one has the name of the model with all patches."""
    lm = load_lm(str(model))
    site = lm.mlp_out(1)
    rows, columns = lm.weight(site).shape
    for seed, name in enumerate(("all", "other")):
        draw = torch.Generator().manual_seed(seed)
        left = 3 * torch.randn(rows, 1, generator=draw)
        update = Update({site: LowRank(left, torch.randn(1, columns, generator=draw))})
        request = {"prompt": "{} is", "subject": "It", "target_new": "the sea"}
        facts = {"method": "test", "model": base_of(lm, update), "request": request}
        save_patch(Path(f"{name}.safetensors"), update, facts)
    return Path("all.safetensors"), Path("other.safetensors")


def test_abilities_of_several_workers_are_those_of_one(
    lmedit: Run,
    model: Path,
    tasks: Path,
    patches: tuple[Path, ...],
    driver: list[str],
    on_ray: list[str],
) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'lmedit[abilities]'")
    call = ("abilities", *patches, "-m", model, "--tasks", "one,two", "--include-path", tasks)
    alone = lmedit(*call, "--json")
    assert alone.exit_code == 0, alone.stderr
    found = json.loads(alone.stdout)["models"]
    assert [each["model"] for each in found] == ["all", "other", "all"]
    assert found[0] != found[2]
    assert driver == ["base", "patch 0", "patch 1", "all"]
    driver.clear()
    several = lmedit(*call, "--json", "--workers", 2)
    assert several.stdout == alone.stdout, several.stderr
    assert 1 <= len(driver) < 4
    through_ray = lmedit(*call, "--json", "--executor", "ray")
    assert through_ray.stdout == alone.stdout, through_ray.stderr
    assert len(on_ray) in {1, 4}


def test_a_worker_with_other_documents_is_an_error(
    model: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'lmedit[abilities]'")
    states = load_states(str(model), {}, {}, (), Wanted(("one",), tasks))
    site = states.model.lm.mlp_out(1)
    rows, columns = states.model.lm.weight(site).shape
    update = Update({site: LowRank(torch.ones(rows, 1), torch.ones(1, columns))})
    both = AbilityStates(states.model, [update], states.wanted)
    measure = both.tasks.measure

    def measure_others(under: Any = None) -> Any:
        values = measure(under)
        if under is not None:
            both.tasks.read["documents"]["one"].pop()
        return values

    monkeypatch.setattr(both.tasks, "measure", measure_others)
    with pytest.raises(RunError, match="mine: its worker had another model or other documents"):
        measure_abilities(both, ["mine"], lambda: both)


def test_the_driver_gives_a_child_its_next_group_before_it_does_its_own() -> None:
    """A child that answers one group while the driver does one never waits for the driver."""
    here, there = Pipe()
    child = Child(1, cast("Any", None), here, ready=True)
    waiting: list[int] = []

    class Here:
        def do(self, group: Group) -> Reply:
            waiting.append(len(child.groups))
            there.send(("reply", Reply(there.recv())))
            return Reply(group)

        def leave(self) -> Reply:
            return Reply(None)

    family = Children(Job(cast("Any", None), Here()), Crew(), 1, [child])
    groups = Waiting(Group("rome", (str(number),), (str(number),)) for number in range(12))
    replies: list[Reply] = []
    while len(waiting) < 5:
        assert family._step(groups, replies.append)
    assert waiting == [AHEAD] * 5
    assert len({reply.group for reply in replies}) == len(replies) == 9
