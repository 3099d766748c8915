"""Read or change what a module takes in or gives out: context managers that leave no trace."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.nn import Module


class StopForward(Exception):  # noqa: N818  (control flow, as StopIteration)
    """Raised inside a forward pass by `captured(..., stop=True)`; nothing deeper is computed."""


def first(output: Any) -> Tensor:
    """A module's main output: the tensor itself, or the first of a tuple."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


class Captured:
    """The main input and output of the module's latest call."""

    input: Tensor
    output: Tensor
    whole: Any
    """The output as the module gave it: a tensor, or a tuple that begins with one."""


@contextmanager
def captured(module: Module, *, stop: bool = False) -> Iterator[Captured]:
    """Keep *module*'s input and output of each call; with *stop*, end the pass there.

    A stopped pass ends the ``with`` body.
    """
    box = Captured()

    def keep(_: Module, args: tuple[Any, ...], output: Any) -> None:
        if args:
            box.input = args[0]
        # A block may go on to change its parts' outputs in place.
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
    """Replace *module*'s main output by ``change(input, output)`` while the block runs."""

    def replace(_: Module, args: tuple[Any, ...], output: Any) -> Any:
        new = change(args[0], first(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def added(x: Tensor, out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """*out* (B, T, d_out) with ``left (right x)`` added: a low-rank change of each row's own.

    *x* (B, T, d_in), *left* (B, d_out, r), *right* (B, r, d_in); summed in the factors' type.
    """
    more = x.to(right.dtype) @ right.mT @ left.mT
    return out + more.to(out.dtype)


@contextmanager
def changed_input(module: Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace *module*'s main input by ``change(input)`` while the block runs."""

    def replace(_: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    handle = module.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def wrapped(module: Module, around: Callable[..., Any]) -> Iterator[None]:
    """Call ``around(forward, *args, **kwargs)`` in place of *module*'s forward in the block."""
    forward, own = module.forward, vars(module).get("forward")
    module.forward = partial(around, forward)
    try:
        yield
    finally:
        if own is None:
            module.__dict__.pop("forward", None)
        else:  # accelerate's, which moves the inputs to the module's device
            module.forward = own
