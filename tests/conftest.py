"""Settings shared by all tests."""

import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

# how long an example takes says more of the machine's load than of the code
settings.register_profile("bilevel", deadline=None)
settings.load_profile("bilevel")
