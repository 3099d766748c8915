"""Import transformers in less than half of the time, in the process of a command only.

transformers imports torch's compiler, distributed tensors and scipy, of which a decoder's pass uses
nothing. Here such a module is imported when it is used first. Nothing else changes: every name
gives the same object. A program that imports lmedit as a library does not see this module.
"""

from __future__ import annotations

import gc
import importlib
import sys
from contextlib import contextmanager
from functools import cache, wraps
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.abc import Loader
    from types import ModuleType

LATE = (
    "torch.distributed",
    "torch._dynamo",
    "scipy",
    "accelerate",
    *(f"transformers.distributed.{name}" for name in ("tensor_parallel", "expert_parallel")),
)
"""Modules that transformers gets as references."""
MARK = "__lmedit_reference__"


def install() -> None:
    """Import quickly from now on in this process. Does nothing if transformers is there already."""
    if "transformers" not in sys.modules and not any(isinstance(f, Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, cast("Any", Finder()))


class Reference:
    """A name of a module that is imported when the name is used first."""

    def __init__(self, module: str, name: str, finder: Finder) -> None:
        """The object *name* of *module*; *finder* gave this reference."""
        self.__dict__.update({"_module": module, "_name": name, "_finder": finder})

    def _find(self) -> Any:
        """The object itself."""
        with self._finder.plainly():
            return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the object."""
        return self._find()(*args, **named)

    def __getattr__(self, name: str) -> Any:
        """An attribute of the object."""
        return getattr(self._find(), name)

    def __mro_entries__(self, bases: Sequence[Any]) -> tuple[Any, ...]:
        """The object, where a class names it as a base."""
        return (self._find(),)

    def __or__(self, other: Any) -> Any:
        """The union of the types, as in an annotation."""
        return self._find() | other

    def __ror__(self, other: Any) -> Any:
        """The union of the types, as in an annotation."""
        return other | self._find()

    def __eq__(self, other: object) -> bool:
        """Whether *other* is the same object."""
        return bool(self._find() == (other._find() if isinstance(other, Reference) else other))

    def __hash__(self) -> int:
        """The object's own hash."""
        return hash(self._find())

    def __instancecheck__(self, value: object) -> bool:
        """Whether *value* is of this type. No value is, if its module was never imported."""
        return self._module in sys.modules and isinstance(value, self._find())

    def __subclasscheck__(self, kind: type) -> bool:
        """Whether *kind* is below this type. None is, if its module was never imported."""
        return self._module in sys.modules and issubclass(kind, self._find())


class Finder:
    """A finder of modules that comes first: it imports quickly, and gives references."""

    def __init__(self) -> None:
        """No module of transformers is being imported yet."""
        self._inside = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How to import *name*; None leaves it to the other finders."""
        head = name.partition(".")[0]
        late = self._inside and any(name == each or name.startswith(f"{each}.") for each in LATE)
        if not late and head != "transformers" and name not in {"torch", "torch._dynamo"}:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        if not late:
            spec.loader = cast("Any", _QuickLoader(spec.loader, self))
            return spec
        reference = ModuleSpec(name, cast("Any", _ReferenceLoader(self)), is_package=True)
        reference.submodule_search_locations = spec.submodule_search_locations or []
        return reference

    def execute(self, name: str, load: Callable[[], None]) -> None:
        """Import the module *name* by *load*, and give references to it if it is transformers'.

        If that fails, *load* is called again without references.
        """
        if self._inside or not name.startswith("transformers"):
            load()
            return
        before = set(sys.modules)
        self._inside = True
        try:
            with _decorated_late():
                load()
            return
        except Exception:  # noqa: BLE001  (the plain import raises what is not due to references)
            _forget(lambda each: each not in before and each.startswith("transformers"))
        finally:
            self._leave()
        load()

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Give no references meanwhile."""
        inside = self._inside
        self._leave()
        try:
            yield
        finally:
            self._inside = inside

    def _leave(self) -> None:
        """Give no references, and remove those that are in the table of modules."""
        self._inside = False
        _forget(lambda each: MARK in vars(sys.modules[each]))


def _forget(chosen: Callable[[str], bool]) -> None:
    """Remove the *chosen* modules from the table of modules and from their parents."""
    for name, module in [(each, sys.modules[each]) for each in list(sys.modules) if chosen(each)]:
        del sys.modules[name]
        parent, _, last = name.rpartition(".")
        if parent in sys.modules and vars(sys.modules[parent]).get(last) is module:
            delattr(sys.modules[parent], last)


class _QuickLoader:
    """Executes a module without garbage collections, by the loader that it has."""

    def __init__(self, loader: Loader, finder: Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # nothing of this class stays
        module.__loader__ = self._loader
        with _uncollected():
            self._finder.execute(name, lambda: self._loader.exec_module(module))
        if name in AMENDED and name in sys.modules:
            AMENDED[name](sys.modules[name])


class _ReferenceLoader:
    """Makes a module whose names are references."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    def create_module(self, _spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def refer(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if module.__name__ == "torch._dynamo" and name in DECORATORS:
                return DECORATORS[name]
            return Reference(module.__name__, name, self._finder)

        vars(module).update({MARK: True, "__getattr__": refer})


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector: a collection would look at all modules that are there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()  # nor do later collections look at them
            gc.enable()


@contextmanager
def _decorated_late() -> Iterator[None]:
    """Let the decorators of `torch.compiler` do their work when the compiler is imported.

    They import it at once, for functions that a decoder's plain pass never calls.
    """
    import torch.compiler

    plain = {name: each for name, each in vars(torch.compiler).items() if name in DECORATORS}
    if "torch._dynamo" not in sys.modules:
        vars(torch.compiler).update({name: DECORATORS[name] for name in plain})
    try:
        yield
    finally:
        vars(torch.compiler).update(plain)


def _disable(fn: Any = None, recursive: bool = True, **_reason: Any) -> Any:
    """`torch.compiler.disable` as torch uses it: it imports the compiler at the first call."""
    from torch._compile import _disable_dynamo

    return _disable_dynamo(fn, recursive)


def _mark(name: str) -> Callable[[Any], Any]:
    """The decorator *name*, which only marks a function for the compiler."""

    def decorate(fn: Any) -> Any:
        MARKED.append((name, fn))
        return fn

    return decorate


MARKED: list[tuple[str, Any]] = []
"""Functions that the compiler's decorators, by name, are to mark when it is imported."""
DECORATORS: dict[str, Callable[..., Any]] = {
    "disable": _disable,
    **{name: _mark(name) for name in ("allow_in_graph", "assume_constant_result")},
}


def _mark_functions(module: ModuleType) -> None:
    """Mark all functions of `MARKED` for the compiler *module*, which was imported now."""
    while MARKED:
        name, fn = MARKED.pop()
        getattr(module, name)(fn)


def _read_exports_quickly(module: ModuleType) -> None:
    """Let transformers read its own files once, and only the end of each."""
    plain: Any = getattr(module, "fetch__all__", None)
    walk: Any = getattr(
        getattr(module, "create_import_structure_from_path", None), "__wrapped__", None
    )
    if plain is not None:

        @wraps(plain)
        def fetch(text: str) -> list[str]:
            found: list[str] = plain(text[max(0, text.rfind("\n__all__") + 1) :])
            return found

        vars(module)["fetch__all__"] = fetch
    if walk is not None:
        vars(module)["create_import_structure_from_path"] = cache(walk)


def _ask_modules_first(module: ModuleType) -> None:
    """Let `is_dtensor` import nothing: without the module of such tensors, none exists."""
    plain: Callable[[object], bool] | None = getattr(module, "is_dtensor", None)
    if plain is None:
        return

    @wraps(plain)
    def is_dtensor(value: object) -> bool:
        return "torch.distributed.tensor" in sys.modules and plain(value)

    vars(module)["is_dtensor"] = is_dtensor


def _skip_shapes(module: ModuleType) -> None:
    """Let `torch.nn.init` leave tensors without values alone; on them it imports sympy."""
    init = vars(module.nn.init)
    for name in [each for each in init if each.startswith("_no_grad_") and each.endswith("_")]:
        init[name] = _except_shapes(init[name])


def _except_shapes(plain: Callable[..., Any]) -> Callable[..., Any]:
    """*plain*, which fills the tensor *tensor*, but not if that is on the meta device."""

    @wraps(plain)
    def fill(tensor: Any, *args: Any, **named: Any) -> Any:
        return tensor if tensor.is_meta else plain(tensor, *args, **named)

    return fill


AMENDED: dict[str, Callable[[ModuleType], None]] = {
    "transformers.utils.import_utils": _read_exports_quickly,
    "transformers.distributed.utils": _ask_modules_first,
    "torch": _skip_shapes,
    "torch._dynamo": _mark_functions,
}
"""Changes of modules after their import: the same answers in less time."""
