"""Sweeps from Python: `sweeps.run` runs one, `sweeps.load` reads the results of one.

Both give `Results`: the table as a pandas frame, the best row, and a row's model.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.files.documents import read_json
from fusion.errors import InputError, unknown
from sweeps.results.comparison import Comparison, Row
from sweeps.results.comparison_file import as_table, document
from sweeps.results.export.from_recipe import export
from sweeps.results.folder import Begin
from sweeps.results.partial_comparison import finished_model, gather
from sweeps.spec.sweep import SweepSpec, load_data
from sweeps.spec.sweep import load as load_spec
from sweeps.spec.yaml_file import overridden
from sweeps.storage.outputs_dir import outputs_dir

if TYPE_CHECKING:
    import pandas as pd
    from torch.nn import Module


@dataclass(frozen=True)
class Results:
    """Results of a sweep, read from its folder.

    >>> rows = [Row("pretrained", "reference", test={"acc/mean": 0.5})]
    >>> rows += [Row("ties", "static", test={"acc/mean": 0.7})]
    >>> rows += [Row("dare", "static", test={"acc/mean": 0.8})]
    >>> results = Results(Path("outputs/demo"), Comparison("demo", "", "val", tuple(rows)))
    >>> results.best.method
    'dare'
    >>> print(results.table[["method", "test/acc/mean"]].to_string(index=False))
        method  test/acc/mean
          dare            0.8
          ties            0.7
    pretrained            0.5
    """

    folder: Path
    """`outputs/<name>`."""
    comparison: Comparison = field(repr=False)
    """The rows with their intervals and paired tests, as `comparison.json` has them."""

    @property
    def table(self) -> pd.DataFrame:
        """One line a row: methods, then references, each with the best first.

        Columns as in `comparison.parquet`: `method`, `params` (JSON), `asked` (False: a reference
        that the program added), `val/…` and `test/…` scores, `test_ci95/…/low` and `…/high`,
        `cost/…`. Scores on the report split are missing while the sweep runs.
        """
        shown = replace(self.comparison, rows=self.comparison.ranked)
        frame: pd.DataFrame = as_table(document(shown)).to_pandas()
        return frame

    @property
    def best(self) -> Row | None:
        """The winner: the best method of the sweep file that is one model.

        Where none of them is one model, the best of all. None until a row has a score. References
        and oracles never win.
        """
        return self.comparison.best

    def row(self, method: str) -> Row:
        """The row of a method, or of a reference.

        Raises:
            InputError: there is no such row.
        """
        rows = {row.method: row for row in self.comparison.rows}
        if method not in rows:
            raise InputError(f"{self.folder}: {unknown('row', method, rows)}")
        return rows[method]

    def model(self, row: Row | str, task: str | None = None) -> Module:
        """A row's merged model, rebuilt from its recipe, as a `transformers` model.

        Args:
            row: a row, or its method.
            task: the expert whose model is wanted, of a method that makes one model a task.

        Raises:
            InputError: a row that is several models or one a sample, no task where one is needed,
                or an ingredient that has changed since.
        """
        found = self.row(row) if isinstance(row, str) else row
        if found.recipe is None:
            if source := finished_model(self.folder, found.method):
                raise InputError(
                    f"{self.folder}: {found.method}: a finished model already: {source}"
                )
            raise InputError(f"{self.folder}: {found.method}: no recipe, so no model to build")
        with tempfile.TemporaryDirectory(prefix="fusion-sweeps-") as place:
            out = Path(place) / "model"
            export(self.folder / found.recipe, out)
            return opened(out, found.method, task)


def opened(folder: Path, method: str, task: str | None) -> Module:
    """The model of an exported folder, which may have one folder for each task.

    Raises:
        InputError: a task where there is one model for all, none where there is one for each, or
            an unknown one.
    """
    import transformers  # start-up time: `sweeps.load` needs none

    if not (folder / "config.json").exists():
        tasks = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if task not in tasks:
            allowed = f"one model a task; one of {', '.join(tasks)} allowed"
            raise InputError(f"{method}: task: {task!r}: {allowed}")
        folder /= task
    elif task is not None:
        raise InputError(f"{method}: task: {task!r}: makes one model for all tasks")
    names = read_json(folder / "config.json").get("architectures") or ["AutoModel"]
    kind: Any = getattr(transformers, str(names[0]), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        kind = transformers.AutoModel
    model: Module = kind.from_pretrained(folder)
    return model


def run(
    spec: SweepSpec | Mapping[str, Any] | str | os.PathLike[str],
    *,
    outputs: str | os.PathLike[str] | None = None,
    resume: bool = False,
    fresh: bool = False,
    extend: bool = False,
    storage: str | None = None,
    address: str | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Results:
    """Run a sweep to its comparison, as `sweeps run` does.

    Args:
        spec: a sweep file, its content as a dict, or a loaded `SweepSpec`.
        outputs: the folder of all sweeps; default: `$FUSION_SWEEPS_OUTPUTS`, else `./outputs`.
        resume: go on with a stopped sweep.
        fresh: move an old one of the name aside.
        extend: go on with other methods, spaces, metric or shifts.
        storage: URL of a durable storage.
        address: of a running Ray cluster; default: `$RAY_ADDRESS`, else this machine.
        overrides: `key=value` texts, as for `--set`; of a file or a dict.
        quiet: print no progress.

    Returns:
        The results. Trials that failed raise nothing: see `Results.comparison.failed`.

    Raises:
        InputError: wrong input; nothing was started.

    >>> given = {"name": "demo", "methods": {"ties": {"density": 2.0}}}
    >>> given |= {"pool": {"base": "base", "experts": {"a": "a"}}, "tasks": {"a": {"dataset": "a"}}}
    >>> run(given)
    Traceback (most recent call last):
    ...
    sweeps.spec.errors.SpecErrors: the sweep: methods.ties.density: 2.0: float in [0, 1] allowed
    """
    loaded = loaded_spec(spec, overrides)
    from sweeps.cluster import ray_connection

    ray_connection.stay_on_loopback(address)
    from sweeps.console.escape import Screen
    from sweeps.execution.run import run as run_sweep  # imports Ray, after the line above

    begin = Begin(resume, fresh, extend, storage)
    outcome = run_sweep(loaded, place_of(outputs), Screen(quiet=quiet), begin, address=address)
    return Results(outcome.folder.path, outcome.comparison)


def load(sweep: str | os.PathLike[str]) -> Results:
    """Read the results of a finished or running sweep.

    Args:
        sweep: its folder (`outputs/x`), or its name under the folder of all sweeps.

    Raises:
        InputError: no sweep there.
    """
    given = Path(sweep).expanduser()
    folder = next((each for each in (given, outputs_dir() / given) if each.is_dir()), None)
    if folder is None:
        raise InputError(f"{given}: no folder of a sweep (looked at {given}, {outputs_dir()}/…)")
    comparison, _ = gather(folder)
    return Results(folder, comparison)


def loaded_spec(
    spec: SweepSpec | Mapping[str, Any] | str | os.PathLike[str], overrides: Sequence[str]
) -> SweepSpec:
    """A sweep file, its content, or a loaded one, checked.

    Raises:
        InputError: faults of the file or the content, one line each; overrides of a loaded one.
    """
    if isinstance(spec, SweepSpec):
        if overrides:
            raise InputError("overrides: of a file or a dict only; a SweepSpec is checked already")
        return spec
    if isinstance(spec, Mapping):
        return load_data(overridden(plain(spec), overrides, "the sweep"), "the sweep")
    return load_spec(spec, overrides)


def plain(value: Any) -> Any:
    """Plain data of a sweep written in Python: paths become texts, tuples lists.

    >>> plain({"pool": {"base": Path("models/base")}, "grid": (0.1, 0.3)})
    {'pool': {'base': 'models/base'}, 'grid': [0.1, 0.3]}
    """
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def place_of(outputs: str | os.PathLike[str] | None) -> Path:
    """The folder of all sweeps."""
    return outputs_dir() if outputs is None else Path(outputs)
