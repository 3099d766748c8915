"""From a user's arguments to editors: one value, `Plan`, and one way from it to each editor.

The command line parses its flags into a `Plan`. A `Plan` holds only plain values. So it can be
sent to a worker process, which sets up everything again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.cases import cases_of_world, corpus_of, load_cases, texts_given
from lmedit.early import check_blocks, check_corpora, check_device, check_options, name_corpora
from lmedit.errors import NotPreparedError, OptionError, UsageError
from lmedit.models import check_files, load_lm, outline, worlds
from lmedit.models.quiet import quiet_hub
from lmedit.observers import observe_all
from lmedit.options import (
    build_options,
    fitting,
    for_methods,
    parts_of,
    remarks_on_files,
    remarks_on_tuned,
    takes_checkpoint,
)
from lmedit.pipeline import Editor, locates_unprepared, prepare, ready
from lmedit.preparation import prepared_path
from lmedit.registry import resolve
from lmedit.stats import PREFIX, SELF, SelfWritten, statistics_named, text_name
from lmedit.types import Prepared

if TYPE_CHECKING:
    from lmedit.cases import CaseSet
    from lmedit.cases.shards import Shard
    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod
    from lmedit.types import Join, Material

    Texts = str | Path | Iterable[str]

Tell = Callable[[str], object]
"""A function that receives a note for the user, one line of text."""


def silent(_: str) -> None:
    """Ignore a note."""


@dataclass(frozen=True)
class Plan:
    """The methods, model, options and data that a command uses. Nothing is loaded yet."""

    methods: tuple[str, ...] = ()
    """Names of methods. Empty: every installed method that works."""
    model: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    download: bool = False
    """Whether models, corpora and cases may be downloaded from the hub."""
    options: tuple[tuple[str, str], ...] = ()
    """Pairs of ``-o``: a name and a value, both as typed."""
    plugins: tuple[Path, ...] = ()
    others: tuple[str, ...] = ()
    """Methods of the same work that another process runs; this plan leaves them out."""
    observers: tuple[str, ...] = ()
    seed: int | None = None  # the random seed, if the user gave one; see `drawn_from`
    trained_seed: int | None = None
    """With several seeds: the first one; methods that were trained use its training."""
    compute: str | None = None  # the option `compute` of every method that has it, if given
    corpora: tuple[str, ...] = ()
    """Corpora to prepare on. NAME is for every method that takes text, METHOD=NAME for one."""
    cases: str | None = None
    limit: int | None = None
    only: str | None = None  # the word of `compare.only`: which cases to keep
    join: Join = "auto"  # the joint of prompts and answers
    chat: bool = False  # whether prompts are asked through the tokenizer's chat template
    system: str | None = None  # the system prompt of the chat
    shard: Shard | None = None  # the part of the work that this machine does; None: all

    def __post_init__(self) -> None:
        """Raise `UsageError` if the values do not go together."""
        if self.system is not None and not self.chat:
            raise UsageError("--system is for a chat; give --chat too, or remove --system")

    @property
    def drawn_from(self) -> int:
        """The seed that comparisons draw from: the user's, or 0."""
        return self.seed or 0

    @property
    def own_corpora(self) -> tuple[str, ...]:
        """The corpora without those of the methods in other processes."""
        return tuple(c for c in self.corpora if c.partition("=")[0] not in self.others)

    def load_methods(
        self, tell: Tell = silent, used: Sequence[str | None] = ()
    ) -> list[LoadedMethod]:
        """Load the methods and attach the observers.

        Without names, load all methods that work, and call *tell* for each method that does not.
        *tell* also receives a note for each plugin file whose method is neither named nor *used*.
        """
        named = [name for name in self.methods if name not in self.others]
        methods = []
        if named or not self.methods:
            left_out: Tell = lambda why: tell(f"left out: {why}")  # noqa: E731
            used = (*used, *self.others)
            methods = resolve(named, self.plugins, left_out, used, self.others)
        observe_all(methods, self.observers)
        return methods

    def load_model(self) -> Lm:
        """Load the model. The hub's library shows progress only on a terminal."""
        check_files(self.model, download=self.download, chat=self.chat)
        quiet_hub()
        return load_lm(
            self.model,
            device=self.device,
            dtype=self.dtype,
            download=self.download,
            join=self.join,
            chat=self.chat,
            system=self.system,
            parts=parts_of(self.options),
        )

    def outline(self) -> Lm:
        """The model's parts and shapes, without weights."""
        check_files(self.model, download=self.download, chat=False)
        parts = parts_of(self.options)
        return outline(self.model, dtype=self.dtype, download=self.download, parts=parts)

    def load_cases(self, limit: int | None = None, default: str | None = None) -> CaseSet:
        """Load the cases; by default *limit* of *default*, of the model's world, or of `demo`."""
        name = self.cases or default or (self.model if self.model in worlds() else "demo")
        return load_cases(name, self.limit or limit, download=self.download)


@dataclass(frozen=True)
class Setup:
    """A plan with its methods and model loaded."""

    plan: Plan
    methods: tuple[LoadedMethod, ...]
    lm: Lm
    tell: Tell = silent

    @cached_property
    def _given(self) -> dict[str, dict[str, Any]]:
        """The options that the user gave, by method."""
        return options_by_method(self.plan, self.methods)

    def given_options(self, loaded: LoadedMethod) -> Mapping[str, Any]:
        """The options of *loaded* that the user gave."""
        return self._given[loaded.name]

    def options(self, loaded: LoadedMethod, **more: Any) -> Options:
        """The resolved options of *loaded*: those of the user, and *more*, which win."""
        given = {**self.given_options(loaded), **more}
        return build_options(loaded.method, given, self.lm, self._seed_of(loaded))

    def _seed_of(self, loaded: LoadedMethod) -> int | None:
        method, first = loaded.method, self.plan.trained_seed
        trained = method.prepares_on == "cases" and "seed" in method.options.prepares
        return first if trained and first is not None else self.plan.seed

    def material(self, loaded: LoadedMethod, *, train: bool = False) -> Material | None:
        """The data that *loaded* is prepared on. None if the user and the model name none.

        With *train*, a method that is trained on cases uses the model's own training cases by
        default.
        """
        kind = loaded.method.prepares_on
        name = self._corpora.get(loaded.name)
        if kind == "text":
            return text_of(name, self.lm, download=self.plan.download)
        if kind == "cases" and name is not None:
            return cases_of_world(name) or load_cases(name, download=self.plan.download)
        if kind == "cases" and train and self.lm.training:
            return load_cases(str(self.lm.training))
        return None

    @cached_property
    def _corpora(self) -> dict[str, str]:
        """The corpus that the user named for each method."""
        return name_corpora(self.plan.own_corpora, self.methods)

    def editor(
        self,
        loaded: LoadedMethod,
        options: Options | None = None,
        *,
        train: bool = False,
        sweep: Sequence[Options] = (),
        stored: bool = False,
    ) -> Editor:
        """The editor of *loaded*; see `editor_for`. With *stored*, nothing is prepared."""
        chosen = options or self.options(loaded)
        material = None if stored else self.material(loaded, train=train)
        own = loaded.name not in self._corpora
        return editor_for(
            loaded, self.lm, chosen, material, own=own, train=train, sweep=sweep, tell=self.tell
        )

    def prepare_into(self, loaded: LoadedMethod, options: Options, place: Path) -> Editor:
        """As `editor` with *train*, with the preparation in the file *place* beside the cache."""
        material = None if takes_checkpoint(options) else self.material(loaded, train=True)
        return prepare(loaded, self.lm, options, material, (options,), place)

    def locator(self, loaded: LoadedMethod, *, probe: bool = False) -> Editor:
        """An editor that can locate, and with *probe* probe; it is prepared only if needed."""
        options = self.options(loaded)
        if locates_unprepared(loaded, probe=probe):
            return Editor(loaded, self.lm, options, Prepared())
        return self.editor(loaded, options)

    def editors(self) -> list[Editor]:
        """An editor for each method.

        If the user named no method, methods that are not prepared are left out, with a note.
        """
        options = [self.options(loaded) for loaded in self.methods]
        found = []
        for loaded, chosen in zip(self.methods, options, strict=True):
            try:
                found.append(self.editor(loaded, chosen))
            except NotPreparedError as error:
                if self.plan.methods:
                    raise
                self.tell(f"left out: {error}")
        return found


def options_by_method(plan: Plan, methods: Sequence[LoadedMethod]) -> dict[str, dict[str, Any]]:
    """The options that the user gave, by method. Raises `OptionError` if one is for no method."""
    given = for_methods(plan.options, [*(loaded.name for loaded in methods), *plan.others])
    if plan.compute is not None:
        taking = [each for each in methods if "compute" in each.method.options.model_fields]
        if not taking and not plan.others:
            names = ", ".join(loaded.name for loaded in methods)
            raise OptionError(f"--compute: {names} computes in the model's type; leave it out")
        for loaded in taking:
            given[loaded.name].setdefault("compute", plan.compute)
    return given


def set_up(
    plan: Plan,
    tell: Tell = silent,
    *,
    more: Iterable[Mapping[str, Any]] = ({},),
    probing: bool = False,
    used: Sequence[str | None] = (),
) -> Setup:
    """Load the methods and the model of *plan*. Notes go to *tell*; see also `check_plan`."""
    methods = check_plan(plan, tell, more=more, probing=probing, used=used)
    lm = plan.load_model()
    tuned = remarks_on_tuned([each.method for each in methods], lm)
    for remark in (*lm.notes, *remarks_on_files(plan.options, lm), *tuned):
        tell(remark)
    return Setup(plan, methods, lm, tell)


def check_plan(
    plan: Plan,
    tell: Tell = silent,
    *,
    more: Iterable[Mapping[str, Any]] = ({},),
    probing: bool = False,
    used: Sequence[str | None] = (),
) -> tuple[LoadedMethod, ...]:
    """Load the methods of *plan*, and check all that needs no weights: options also with *more*.

    Without *probing*, options of a probe are refused. *used* names methods beside those of *plan*.
    """
    methods = tuple(plan.load_methods(tell, used))
    check_device(plan.device)
    given, every = options_by_method(plan, methods), [m.method for m in methods]
    several = [
        {m.name: {**given[m.name], **fitting(every, m.method, extra)} for m in methods}
        for extra in more
    ]
    chosen = check_options(methods, several, plan.seed, probing=probing)
    check_blocks(chosen, plan.model, plan.outline)
    corpora = name_corpora(plan.own_corpora, methods)
    check_corpora(corpora, methods, download=plan.download)
    if plan.corpora and not corpora and not plan.others:
        tell(f"--corpus is not used: {', '.join(m.name for m in methods)} needs no preparation")
    return methods


def editor_for(
    loaded: LoadedMethod,
    lm: Lm,
    options: Options,
    material: Material | None,
    *,
    own: bool = False,
    train: bool = False,
    sweep: Sequence[Options] = (),
    tell: Tell = silent,
) -> Editor:
    """Make the editor of *loaded* for *lm*. Only this function decides whether to prepare.

    If *material* is text, statistics are computed now. A method that is trained on cases is
    trained only with *train*, because training takes long; else its preparation must exist.
    *sweep* holds all options that are prepared on the same text in this run.

    *own* says that the user named no *material*. Then `find_prepared` may choose a preparation
    that comes with the model. Any stored preparation is used before the model writes text itself.

    Raises `NotPreparedError` with the command to run, and `OptionError` if several
    preparations fit.
    """
    if not options.needs_preparation:
        return ready(loaded, lm, options)
    if takes_checkpoint(options):
        return prepare(loaded, lm, options, None)
    makes = train or (material is not None and loaded.method.prepares_on != "cases")
    if not train and (own or not makes):
        wanted = None if own and isinstance(material, SelfWritten) else material
        try:
            return ready(loaded, lm, options, wanted, own=own)
        except NotPreparedError:
            if not makes:
                raise
    if material is not None and not prepared_path(loaded, lm, options, material).is_file():
        tell(f"{loaded.name}: preparing on {text_name(material)}, once for this model")
    return prepare(loaded, lm, options, material, sweep)


def text_of(given: Texts | None, lm: Lm, *, download: bool = False) -> Material | None:
    """A corpus, or stored statistics (``stats:ID``).

    Without *given*: the text that comes with *lm*, or else text that *lm* writes (``self``).
    """
    if given is not None and not isinstance(given, str | Path):
        return texts_given(given)
    name = None if given is None else str(given)
    if name is not None and name.startswith(PREFIX):
        return statistics_named(name)
    if name == SELF or (name is None and lm.text is None):
        return SelfWritten(lm)
    found: Material | None = corpus_of(name, lm.text, download=download)
    return found
