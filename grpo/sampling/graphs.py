"""Decodes that are recorded once and replayed: to launch a decode's hundreds of kernels takes the host longer than it
takes a GPU to run them.

A recording is good for one number of rows and one width of attention, over the memory that it was made with; the cache
forgets it where that moves (`SlotCache.recorded`). The first decode of a kind runs as ever, which also does whatever is
done once, the second is recorded, and the others are replayed."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpo.policy import Policy
from grpo.sampling.decoder import Decoder, Inputs
from grpo.steering import Steering

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Takes a computation and records it without running it; what it returns runs it, on what its tensors then hold."""


def cuda_graph(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record into a CUDA graph. Raises RuntimeError where `compute` waits for the device."""
    try:
        graph, output = _captured(compute)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # which cannot be done while a graph is recorded
        graph, output = _captured(compute)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _captured(compute: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    # Not by the context manager of torch, which gives all cached memory back to the driver each time.
    graph, current, own = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), _stream()
    own.wait_stream(current)
    with torch.cuda.stream(own):
        # Other threads talk to the device meanwhile: the watchdog of NCCL asks for events.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            with _refusing_to_wait():
                output = compute()
        finally:
            graph.capture_end()
    current.wait_stream(own)
    return graph, output


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """What would wait for the device raises an error of Python's. One of CUDA's would break the recording, and what
    torch knows of its memory."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass(slots=True)
class _Recorded:
    shapes: list[torch.Size]
    steering: Steering | None
    tensors: list[Tensor]  # what a replay reads, beside the cache and the weights
    replay: Callable[[], Tensor] | None = None  # None until the second decode of the kind


class RecordedDecoder:
    """Another decoder, replayed. As `grpo.sampling.decoder.Decoder`.

    A replay's hidden states are in the memory of the one before: they are to be read before the next decode."""

    def __init__(self, decoder: Decoder, policy: Policy, *, record: Record = cuda_graph) -> None:
        """`decoder` decodes `policy`'s weights."""
        self._decoder, self._policy, self._record = decoder, policy, record
        self.what = f"{decoder.what}, recorded once and replayed"
        self._records = True
        self.is_on_trial = True
        """Whether a recording that fails is an error. Later on, decodes are not recorded any more."""

    def load_weights(self, policy: Policy) -> None:
        """As the decoder that is recorded."""
        self._policy = policy
        self._decoder.load_weights(policy)

    def hidden(self, inputs: Inputs) -> Tensor:
        """As `Decoder.hidden`."""
        if not self._records:
            return self._decoder.hidden(inputs)
        tensors, steering = _tensors(inputs), self._policy.steering
        shapes = [tensor.shape for tensor in tensors]
        recorded: _Recorded | None = inputs.cache.recorded
        if recorded is None or recorded.shapes != shapes or recorded.steering is not steering:
            inputs.cache.recorded = _Recorded(shapes, steering, [])
            return self._decoder.hidden(inputs)
        if recorded.replay is None:
            recorded.tensors = [tensor.clone() for tensor in tensors]
            own = _with(inputs, recorded.tensors)
            try:
                recorded.replay = self._record(lambda: self._decoder.hidden(own))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if self.is_on_trial:
                    raise
                # Nothing of it has run, so the decode can. It went well on trial, so it is worth a word.
                warnings.warn(f"decodes are not recorded any more ({error}); sampling is slower", stacklevel=2)
                self._records = False
                return self._decoder.hidden(inputs)
        else:
            for own_tensor, tensor in zip(recorded.tensors, tensors, strict=True):
                own_tensor.copy_(tensor)
        return recorded.replay()


def _tensors(inputs: Inputs) -> list[Tensor]:
    masks = [inputs.masks] if isinstance(inputs.masks, Tensor) else list(inputs.masks.values())
    steer_at = [] if inputs.steer_at is None else [inputs.steer_at]
    return [inputs.token_ids, inputs.position_ids, *steer_at, *masks]


def _with(inputs: Inputs, tensors: list[Tensor]) -> Inputs:
    """The same decode of other `tensors`, in the order of `_tensors`."""
    rest = iter(tensors)
    changed: dict[str, Any] = {"token_ids": next(rest), "position_ids": next(rest)}
    if inputs.steer_at is not None:
        changed["steer_at"] = next(rest)
    changed["masks"] = next(rest) if isinstance(inputs.masks, Tensor) else dict(zip(inputs.masks, rest, strict=True))
    return replace(inputs, **changed)
