"""`python -m actors.embedded`: build the embedded pool of images and print where it is."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from actors.embedded.build import build
from actors.files.embedded_pool import EmbeddedPool


def show(build: Callable[..., EmbeddedPool], name: str) -> None:
    """Build a pool of seed 0 in the user's cache, with a progress bar, and print its folder."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as bar:
        line = bar.add_task(name, total=1.0)
        pool = build(progress=lambda what, done: bar.update(line, description=what, completed=done))
    Console().print(str(pool.root))


if __name__ == "__main__":
    show(build, "the embedded pool")
