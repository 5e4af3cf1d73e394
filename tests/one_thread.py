"""Where tests run in a process for each core, torch gets one thread in each: it reads how many when it is imported.

With more threads than cores OpenMP's threads wait for each other by spinning, and small models take ten times as long.
"""

import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:
    assert "torch" not in sys.modules
    os.environ.setdefault("OMP_NUM_THREADS", "1")
