"""The embedded pool: a small CLIP, eight drawn tasks and eight experts, built once on this machine.

`build.py` makes it, `layout.py` says where it lies, the other files draw its data. This package
file imports nothing, so that finding a finished pool costs no framework import.
"""
