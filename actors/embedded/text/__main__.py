"""`python -m actors.embedded.text`: build the embedded pool of texts and print where it is."""

from actors.embedded.__main__ import show
from actors.embedded.text.build import build

if __name__ == "__main__":
    show(build, "the embedded text pool")
