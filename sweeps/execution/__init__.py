"""Running a sweep: the fleet, the trials, and the final evaluation."""
