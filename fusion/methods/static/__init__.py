"""Methods that merge weights entry by entry or by coefficients: averages, task arithmetic."""
