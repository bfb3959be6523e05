"""The embedded pool: a small CLIP, eight drawn tasks and eight experts, built once on this machine.

`build.py` makes it, `actors/files/embedded_pool.py` finds it, the other files draw its data.
"""

from actors.embedded.build import build as build
from actors.files.embedded_pool import EmbeddedPool as EmbeddedPool
from actors.files.embedded_pool import locate as locate
