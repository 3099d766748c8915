"""Context managers that read or change a module's input or output; they leave no trace."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.nn import Module


class StopForward(Exception):  # noqa: N818  (control flow, as StopIteration)
    """`captured(..., stop=True)` raises it in a forward pass, so deeper modules do not run."""


def first(output: Any) -> Tensor:
    """The main output of a module: the tensor itself, or the first item of a tuple."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
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


def added(x: Tensor, out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add ``left (right x)`` to *out* (B, T, d_out): a low-rank change, another for each row.

    *x* (B, T, d_in), *left* (B, d_out, r), *right* (B, r, d_in). The sum has the factors' type.
    """
    more = x.to(right.dtype) @ right.mT @ left.mT
    return out + more.to(out.dtype)


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
