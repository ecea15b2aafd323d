"""Tensors that share memory until one of them is written to.

A captured module has the weights of the model it was made of, and neither may see what is done to
the other. Torch's copy on write keeps that without a second copy: whichever of two tensors is
written to first, by an operator, an optimiser or ``load_state_dict``, gets memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def shared(tensor: Tensor) -> Tensor:
    """A tensor of the same values, detached, that shares the memory until either is written to.

    It is a copy where torch cannot share: on other devices than the CPU, of a part of a larger
    memory, and of memory that torch's allocator has not made (a NumPy array, a mapped or loaded
    file, memory of several processes).
    """
    if not _is_whole(tensor) or tensor.is_shared():
        return tensor.detach().clone()
    twin: Tensor = torch.ops.aten._lazy_clone(tensor.detach())
    return twin


def unshare(tensors: Iterable[Tensor]) -> None:
    """Give each tensor memory of its own: it is copied if another still shares it."""
    for tensor in tensors:
        if torch._C._is_cow_tensor(tensor):  # type: ignore[attr-defined]
            tensor.data_ptr()  # to ask for memory that may be written to is to write


def memory_of(tensor: Tensor) -> tuple[int, int]:
    """What tells the memory of a tensor, and where in it the tensor begins, without touching it."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())


def _is_whole(tensor: Tensor) -> bool:
    """Whether the tensor is a plain one on the CPU, and all that memory of torch's own holds."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return False
    memory = tensor.untyped_storage()
    return memory.resizable() and memory.nbytes() == tensor.numel() * tensor.element_size() > 0
