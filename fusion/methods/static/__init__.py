"""Methods that merge weights alone: averages, task arithmetic, TIES, DARE and others."""
