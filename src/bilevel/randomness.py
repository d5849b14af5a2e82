"""One random generator per purpose, so that methods are compared on the same draws."""

from __future__ import annotations

import hashlib

import torch


def generator(study: str, purpose: str, seed: int, step: int | None = None) -> torch.Generator:
    """A generator on the CPU that depends on its arguments alone.

    purpose: what is drawn (split, corruption, initialization, batches, …).
    step: for draws that repeat; a draw of one step does not depend on whether earlier ones were made.
    """
    key = f"{study}\n{purpose}\n{seed}\n{'' if step is None else step}"
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number & (2**63 - 1))
