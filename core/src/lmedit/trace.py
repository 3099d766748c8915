"""Context managers that read or change a module's input or output; they leave no trace."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from torch.nn import Embedding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor
    from torch.nn import Module


class StopForward(Exception):  # noqa: N818  (control flow, as StopIteration)
    """`captured(..., stop=True)` raises it in a forward pass, so deeper modules do not run."""


def first(output: Any) -> Tensor:
    """The main output of a module: the tensor itself, or the first item of a tuple."""
    tensor: Tensor = output[0] if isinstance(output, tuple | list) else output
    return tensor


class Captured:
    """The main input and output of the module's latest call."""

    input: Tensor
    output: Tensor
    whole: Any
    """The output as the module returned it: a tensor, or a tuple that begins with one."""


@contextmanager
def captured(module: Module, *, stop: bool = False) -> Iterator[Captured]:
    """Store *module*'s input and output at each call. With *stop*, end the forward pass there.

    A stopped pass also ends the ``with`` body.
    """
    box = Captured()

    def keep(_: Module, args: tuple[Any, ...], output: Any) -> None:
        if args:
            box.input = args[0]
        # A block may change the outputs of its parts in place.
        box.output, box.whole = first(output) if stop else first(output).clone(), output
        if stop:
            raise StopForward

    handle = module.register_forward_hook(keep)
    try:
        yield box
    except StopForward:
        if not stop:
            raise
    finally:
        handle.remove()


@contextmanager
def changed(module: Module, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Replace *module*'s main output by ``change(input, output)`` in the block."""

    def replace(_: Module, args: tuple[Any, ...], output: Any) -> Any:
        new = change(args[0], first(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def add_low_rank(x: Tensor, out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add ``left (right x)`` to *out* (B, T, d_out): a low-rank change, another for each row.

    *x* (B, T, d_in), *left* (B, d_out, r), *right* (B, r, d_in). The sum has the factors' type.
    """
    more = x.to(right.dtype) @ right.mT @ left.mT
    return out + more.to(out.dtype)


class WithMatrices(Protocol):
    """A model whose modules can be found by the sites of their parameters."""

    def module_of(self, site: Any) -> Module:
        """The module that contains the parameter of *site*."""


class DeltaLike(Protocol):
    """A change of a matrix (d_out, d_in): `left` and `right`, or `values`."""

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name."""


@contextmanager
def as_if(lm: WithMatrices, deltas: Mapping[Any, DeltaLike]) -> Iterator[None]:
    """Run *lm* as if *deltas* were added to its weights in the block; no weight is written.

    Each changed module gives ``W x + dW x``. The sum has the type of *deltas* and is rounded to the
    model's type. It equals a change of the weights to 1e-9 in double precision. *deltas* maps
    sites to changes. Raises `ValueError` for a module that looks rows up, such as an embedding.
    """
    with ExitStack() as stack:
        for site, delta in deltas.items():
            module = lm.module_of(site)
            if isinstance(module, Embedding):
                raise ValueError(f"{site.parameter} is a table of rows; as_if needs a matrix")
            bias = site.parameter.endswith(".bias")
            stack.enter_context(changed(module, partial(_as_if, delta.tensors(), bias=bias)))
        yield


def _as_if(parts: Mapping[str, Tensor], x: Tensor, out: Tensor, *, bias: bool) -> Tensor:
    """*out* of a module with the change *parts*, for its input *x* (..., d_in)."""
    right = parts.get("right", parts.get("values"))
    assert right is not None
    x = x.new_ones(*x.shape[:-1], 1) if bias else x
    more = x.to(right.device, right.dtype) @ right.T
    if "left" in parts:
        more = more @ parts["left"].T
    return out + more.to(out)


@contextmanager
def changed_input(module: Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace *module*'s main input by ``change(input)`` in the block."""

    def replace(_: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    handle = module.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def wrapped(module: Module, around: Callable[..., Any]) -> Iterator[None]:
    """Call ``around(forward, *args, **kwargs)`` instead of *module*'s forward in the block."""
    forward, own = module.forward, vars(module).get("forward")
    module.forward = partial(around, forward)
    try:
        yield
    finally:
        if own is None:
            module.__dict__.pop("forward", None)
        else:  # accelerate's forward, which moves the inputs to the module's device
            module.forward = own
