"""What is checked and estimated before a sweep starts."""
