"""Trial processes start while replicas work: what they import must be little."""

import subprocess
import sys


def test_a_trial_process_imports_no_torch():
    heavy = ("torch", "mlflow", "fusion")
    code = f"import sys, sweeps.thin; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
