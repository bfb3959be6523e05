"""The models of winners for MLflow: exported into a temporary folder, or why that fails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.artifacts.recipe import BASE
from actors.pool.pool import Pool
from fusion.errors import InputError
from fusion.registry import METHODS
from sweeps.console import number_format
from sweeps.planning.prepared import Prepared
from sweeps.results.comparison import Row, is_single
from sweeps.results.export.from_recipe import export
from sweeps.results.export.task_files import TASKS
from sweeps.tracking.logged_model import NoModel


@dataclass(frozen=True)
class WinnerModel:
    """The model of one row, exported when MLflow needs it.

    Args:
        recipe: its recipe file.
        pool: of the sweep.
        dtype: what the model computes in; a name of `torch`.
        place: folder for what is written.
    """

    recipe: Path
    pool: Pool
    dtype: str
    place: Path

    def export(self) -> Path:
        """The exported folder.

        Raises:
            NoModel: the row has no model to export; the message has the reason.
        """
        out = self.place / self.recipe.stem
        if out.exists():
            return out
        try:
            lacking = export(self.recipe, out)
        except InputError as error:
            raise NoModel(str(error)) from None
        if not (out / TASKS).exists():
            raise NoModel(lacking or "its tasks could not be read")
        return out

    def package(self, run_id: str, model_id: str) -> Path:
        """The folder of its MLflow model; see `packaged_model.package`.

        Raises:
            NoModel: see `export`.
        """
        usage = self.pool.family.usage(self.pool.base)
        assert usage is not None  # `model_of` gives no such model
        # Start-up time: MLflow's pyfunc takes a second, at the end of a sweep.
        from sweeps.tracking.packaged_model import package

        return package(self.export(), usage, self.dtype, run_id, model_id)


def model_of(row: Row, recipe: Path | None, prepared: Prepared, place: Path) -> WinnerModel | str:
    """The model of a row for MLflow, or why it has none, in a line."""
    if row.method == BASE:
        return "the base itself"
    if row.method in prepared.spec.references:
        return f"a finished model: {prepared.spec.references[row.method]}"
    if not is_single(row.method):
        held = METHODS.get(row.method)
        output = "logits" if held is None else held.output
        return f"no single model ({output.replace('_', ' ')})"
    if recipe is None:
        return "it has no recipe"
    if prepared.pool.family.usage(prepared.pool.base) is None:
        return "models of its family are not logged: they have no code that predicts"
    most, size = prepared.spec.mlflow.max_model_mb, model_bytes(prepared.pool)
    if size > most * 10**6:
        shown = number_format.size(size)
        return f"{shown}, more than mlflow.max_model_mb: {most:g} allows"
    return WinnerModel(recipe, prepared.pool, prepared.spec.placement.dtype, place)


def model_bytes(pool: Pool) -> int:
    """Bytes of a merged model's tensors, as they are in the base."""
    base = pool.base
    parts = (base.tensors, base.rest, base.buffers)
    return sum(info.nbytes for part in parts for info in part.values())
