"""The embedded pool: a small CLIP, eight drawn tasks and eight experts, built once on this machine.

`build.py` makes it, `layout.py` says where it lies, the other files draw its data.
"""

from actors.embedded.build import build as build
from actors.embedded.layout import EmbeddedPool as EmbeddedPool
from actors.embedded.layout import locate as locate
