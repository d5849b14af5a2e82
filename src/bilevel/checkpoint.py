"""State of a run in a file while it goes on, so that one that was killed goes on from there when it is started again.

A piece of work is given a `Checkpoint`, a place for its state, and says between its steps what that is (`keep`). Its
parts have places of their own (`part`), and what a part has found once is not computed again (`kept`). The file, a
`CheckpointFile`, is written now and then, whole or not at all, and says what it is a checkpoint of: that of other
settings, other code or other data is left alone. It is a safetensors file, with everything but the numbers in tensors
as JSON in its header.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode
from torch import Tensor

from bilevel.errors import UserError
from bilevel.files import replacing
from bilevel.progress import ENDED, say

State = Any
"""Tensors, numbers, text, truth values, None, and lists and dictionaries of these; keys are numbers or text."""

LEAST_PAUSE = 20.0
"""Seconds without a save for each second that the last one took, so that saving takes a twentieth of a run at most."""


class Checkpoint:
    """A place for the state of a piece of work. Without a file nothing is kept and nothing is found."""

    def __init__(self, file: CheckpointFile | None = None, found: Mapping[str, Any] | None = None) -> None:
        self._file, self._found = file, dict(found or {})
        self._parts: dict[str, Checkpoint] = {}

    @property
    def found(self) -> State | None:
        """The state that was kept here last, in this process or before an interruption; None where there is none."""
        return self._found.get("state")

    def keep(self, state: State) -> None:
        """Take `state` for that of the work from now on, and save everything if it is time.

        Tensors are read when the file is written, here or in a part: until the next call they may change only where no
        part is at work. What is to be the same after an interruption must follow from the state alone.
        """
        if self._file is not None:
            self._found["state"] = state
            self._file.offer()

    def steps(self, state: Tensor, count: int) -> Iterator[int]:
        """Numbers of those of `count` steps that are still to be made, each of which changes `state` in place.

        `state` is all that is kept, after each step; it first becomes what it was before an interruption.
        """
        done = 0
        if (found := self.found) is not None:
            done = found["steps"]
            state.copy_(found["state"])
        for step in range(done, count):
            yield step
            self.keep({"steps": step + 1, "state": state})

    def part(self, name: str) -> Checkpoint:
        """The place of a part of this work, always the same for a name."""
        if self._file is None:
            return self
        if name not in self._parts:
            self._parts[name] = Checkpoint(self._file, self._found.get("parts", {}).get(name))
        return self._parts[name]

    def kept(self, name: str, compute: Callable[[Checkpoint], State]) -> State:
        """What `compute` gives, or gave before an interruption; the place it is given is that of the part `name`."""
        part = self.part(name)
        if "value" in part._found:
            return part._found["value"]
        value = compute(part)
        if self._file is not None:
            part._found, part._parts = {"value": value}, {}
            self._file.offer()
        return value

    def content(self) -> State:
        """Everything in this place. Parts that this process has not come to yet are as they were found."""
        parts = {**self._found.get("parts", {}), **{name: part.content() for name, part in self._parts.items()}}
        return {**self._found, "parts": parts} if parts else self._found


NOWHERE = Checkpoint()
"""For work that is not kept."""


class CheckpointFile:
    """The file of a run's checkpoint; `root` is the place of the whole run.

    path: where it is; None: nowhere, and nothing is kept.
    identity: by name what the run depends on, as JSON values: its settings, its code, its data.
    interval: seconds from one save to the next, and from the start to the first; 0: at every opportunity.

    resumed: how often the run was begun again from its checkpoint. earlier: seconds of work that these attempts had
    done before.

    A checkpoint with another identity is not used, nor is one that cannot be read: standard error says why, and the run
    starts anew.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any], interval: float) -> None:
        self._interval = interval
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._begin = time.perf_counter()
        self._due = time.monotonic() + interval
        self._ending: int | None = None
        self.resumed, self.earlier = 0, 0.0
        self.root = NOWHERE
        if path is not None:
            self._path = path
            self.root = Checkpoint(self, self._read())

    def offer(self) -> None:
        """Save if it is time.

        Raises SystemExit after that where `end` was called.
        """
        if self._ending is not None or time.monotonic() >= self._due:
            self.save()
        if self._ending is not None:
            say(f"{self._path}: {ENDED}")
            raise SystemExit(128 + self._ending)

    def save(self) -> None:
        """Write everything; where that fails, standard error says why, and the run goes on."""
        begin = time.monotonic()
        attempts = {"resumed": self.resumed, "seconds": self.earlier + time.perf_counter() - self._begin}
        about = {"identity": json.dumps(self._identity), "attempts": json.dumps(attempts)}
        content = encoded(self.root.content(), about)
        try:
            with replacing(self._path) as file:
                file.write(content)
        except UserError as error:
            say(f"{error}; the run goes on without a new checkpoint")
        now = time.monotonic()
        self._due = now + (max(self._interval, LEAST_PAUSE * (now - begin)) if self._interval else 0.0)

    def end(self, signal: int) -> None:
        """Have the process end at the next opportunity, once it has saved; for handlers of signals."""
        self._ending = signal

    def remove(self) -> None:
        """Delete the file, once the run's results are in place."""
        if self.root is not NOWHERE:
            self._path.unlink(missing_ok=True)

    def _read(self) -> State | None:
        try:
            state, about = decoded(self._path)
            identity, attempts = json.loads(about["identity"]), json.loads(about["attempts"])
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            self._refuse(f"cannot be read ({error})")
            return None
        other = [name for name in {**identity, **self._identity} if identity.get(name) != self._identity.get(name)]
        if other:
            self._refuse(f"is a checkpoint of other {', '.join(other)}")
            return None
        self.resumed, self.earlier = attempts["resumed"] + 1, attempts["seconds"]
        say(f"{self._path}: goes on after {self.earlier:.1f} s of work")
        return state

    def _refuse(self, reason: str) -> None:
        say(f"{self._path}: {reason}; it is not used, and the run starts anew")


def encoded(state: State, about: Mapping[str, str]) -> bytes:
    """A state and texts about it as the content of a safetensors file.

    All tensors of a type are one vector there. Raises TypeError for what is no `State`.
    """
    parts: dict[str, list[Tensor]] = {}
    tree = _packed(state, parts, {})
    vectors = {name: torch.cat(tensors) for name, tensors in parts.items()}
    return encode(vectors, {**about, "state": json.dumps(tree, separators=(",", ":"))})


def decoded(path: Path) -> tuple[State, dict[str, str]]:
    """State and texts of a file made of what `encoded` gives; every tensor has memory of its own, laid out as it was.

    Raises SafetensorError, OSError, KeyError or ValueError for a file that is none.
    """
    with safe_open(path, framework="pt") as file:
        about: dict[str, str] = file.metadata() or {}
        vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        return _unpacked(json.loads(about.pop("state")), vectors), about


def _packed(value: State, parts: dict[str, list[Tensor]], sizes: dict[str, int]) -> Any:
    """As JSON, with tensors, flat and on the CPU, in `parts` by their type; sizes: numbers in these so far."""
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        place = {
            "type": name,
            "first": sizes.get(name, 0),
            "shape": list(value.shape),
            "stride": list(value.stride()),
            "device": str(value.device),
        }
        parts.setdefault(name, []).append(value.detach().cpu().flatten())
        sizes[name] = sizes.get(name, 0) + value.numel()
        return {"tensor": place}
    if isinstance(value, Mapping):
        return {"entries": [[key, _packed(part, parts, sizes)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(part, parts, sizes) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _unpacked(tree: Any, vectors: Mapping[str, Tensor]) -> State:
    if isinstance(tree, list):
        return [_unpacked(part, vectors) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "entries" in tree:
        return {key: _unpacked(part, vectors) for key, part in tree["entries"]}
    place = tree["tensor"]
    shape, stride = torch.Size(place["shape"]), place["stride"]
    values = vectors[place["type"]].narrow(0, place["first"], shape.numel()).view(shape)
    # memory of its own, and the same strides: sums may be taken in another order otherwise
    dense = 0 not in stride
    result = torch.empty_strided(shape, stride, dtype=values.dtype) if dense else torch.empty_like(values)
    return result.copy_(values).to(place["device"])
