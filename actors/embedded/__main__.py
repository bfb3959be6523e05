"""`python -m actors.embedded`: build the embedded pool and print its path."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from actors.embedded.build import build


def main() -> None:
    """Build the pool of seed 0 in the user's cache, with a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as bar:
        line = bar.add_task("the embedded pool", total=1.0)
        pool = build(progress=lambda what, done: bar.update(line, description=what, completed=done))
    Console().print(str(pool.root))


if __name__ == "__main__":
    main()
