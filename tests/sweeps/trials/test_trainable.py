"""Trial processes start while replicas work: what they import must be little."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["sweeps.trials.trainable", "actors.fleet.dispatcher"])
def test_a_trial_process_imports_no_torch(module):
    """It imports the trainable, and the dispatcher when it is handed its actor handle."""
    heavy = ("torch", "mlflow")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
