"""Speed and memory of the networks beside their peers, measured in one run."""

import os

# Waiting OpenMP threads sleep instead of spinning: on a busy machine spinning adds several times the work to the CPU
# time. It must be set before torch loads, and a policy set by the user stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
