"""The peak of a process's memory: its own, and all of it."""

import subprocess
import sys

import pytest

from bilevel import peak_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems count what the process was before")

CODE = """
import torch
from bilevel import peak_memory
cpu = torch.device("cpu")
first = peak_memory.of_process()
held = torch.ones(75_000_000)  # 300 MB
large = peak_memory.of_process()
del held
peak_memory.begin(cpu)
print(first, large, peak_memory.peak(cpu), peak_memory.of_process())
"""


def test_a_process_has_the_peak_since_it_began_its_program_whatever_was_begun_meanwhile() -> None:
    parent = bytearray(1_500_000_000)  # of which a child is a copy until it runs its program
    answer = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    first, large, since, whole = map(int, answer.stdout.split())
    assert peak_memory.of_process() > len(parent)
    assert 50e6 < first < 1000e6
    assert large > first + 290e6
    assert since < large - 250e6
    assert whole > large - 1e6  # Linux counts pages roughly
