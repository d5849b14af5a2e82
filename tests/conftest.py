"""Settings shared by all tests."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

# how long an example takes says more of the machine's load than of the code; where a change is judged, the examples are
# the same every time, and everywhere else they are new ones
settings.register_profile("bilevel", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("bilevel")


# derivatives in a fork fail once some other tests have had torch start threads in the same process
FORKING = {"test_memory.py": -2, "test_checkpoint_tasks.py": -1}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run Snakemake first, as they take minutes: otherwise one worker is left with them in the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("pipeline"))
    items.sort(key=lambda item: (-slow[item.path], FORKING.get(item.path.name, 0)))
