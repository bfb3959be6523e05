"""The pool: one base and its experts, and how their task vectors are stored."""
