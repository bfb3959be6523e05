"""`pytest -p tests.pretend.plugin`: this process has a pretended GPU, from before anything else."""

from tests.pretend import building

building.load()

from tests.pretend import device  # noqa: E402 - it imports PyTorch

device.install()
