"""Disk cache of features of a frozen extractor: computed once, then memory-mapped.

One Arrow file (`matrix_file.py`) holds one source split: float32 [N, d], all its rows in the data
set's order. Its name is a hash of extractor, data and preprocessing. Batch boundaries are fixed, so
neither the number of workers nor the place (Ray or this process) changes the result. The number of
threads, the kind of processor and GPUs change the order of sums, and so the last digits (1e-5,
relative).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.data.protocol import Extract, FeatureEncoder, Progress
from actors.data.row_file import open_labels
from actors.data.task import Task
from actors.data.workers import quiet
from actors.files.fingerprint import fingerprint
from actors.files.matrix_file import matrix_shape, open_matrix, write_matrix
from fusion.errors import InputError

BATCH = 64
"""Images in a forward pass: a ResNet-50's largest maps then take 200 MB."""

CHUNK = 16 * BATCH
"""Rows that a worker returns at a time."""

RESTARTS = 2
"""Restarts of a worker whose process died; its chunk is computed again. Ray Data itself has no
limit."""

FEW = 2048 * 3 * 224 * 224
"""Below this number of bytes of prepared rows (2048 images of 224 × 224 pixels), this process is
faster: workers need time to start."""


@dataclass(frozen=True)
class Split:
    """One source split whose features are to be computed."""

    path: Path
    file: Path
    task: str
    name: str
    rows: int


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file of prepared rows."""

    file: str
    start: int
    stop: int


def features_path(extractor: FeatureEncoder, file: Path, root: Path, device: str = "cpu") -> Path:
    """Path of the features of a file of rows; both names are content hashes."""
    kind = torch.device(device).type
    key = fingerprint("features-3", extractor.fingerprint, file.name, kind)
    return root / "features" / f"{key}.arrow"


def prepare_features(
    extractor: FeatureEncoder,
    tasks: Mapping[str, Task],
    needed: Collection[tuple[str, str]],
    root: Path,
    progress: Progress | None = None,
    device: str = "cpu",
) -> dict[tuple[str, str], Path]:
    """Compute the features of splits that are not in the cache.

    Rows are prepared as the extractor reads them (`Inputs.prepare`), then features are computed: by
    Ray Data's workers if Ray is initialised, much is missing and processors (or GPUs) are free;
    else in this process.

    Args:
        extractor: an opened extractor.
        tasks: name -> task.
        needed: (task, source split).
        root: the cache folder.
        progress: called with the images done and the total of images that are not cached: while
            images are decoded, then from zero again while features are computed.
        device: `cpu` or a CUDA device; workers take one processor or one GPU each. If Ray is
            initialised, this process uses no GPU, because its memory would stay allocated.

    Returns:
        (task, source split) -> Arrow file, float32 [N, d].

    Raises:
        InputError: as `Inputs.prepare`; features that are not finite, naming extractor, task,
            split and row; no space left. No partial file stays behind.
    """
    files = extractor.inputs.prepare(tasks, needed, root, progress)
    paths = {at: features_path(extractor, file, root, device) for at, file in files.items()}
    missing: dict[Path, Split] = {}
    for at, path in paths.items():
        rows = len(open_labels(files[at]))
        if matrix_shape(path) != (rows, extractor.width):
            missing.setdefault(path, Split(path, files[at], *at, rows))
    if missing:
        write(extractor, list(missing.values()), progress or (lambda done, total: None), device)
    return paths


def open_features(path: Path) -> Tensor:
    """Features [N, d] float32 of a split, memory-mapped and read-only.

    Raises:
        InputError: missing or damaged.
    """
    return open_matrix(path, "features")


def write(extractor: FeatureEncoder, splits: list[Split], progress: Progress, device: str) -> None:
    """Compute and write splits, one file after the other, as one stream of chunks."""
    chunks = [
        Chunk(str(split.file), start, min(start + CHUNK, split.rows))
        for split in splits
        for start in range(0, split.rows, CHUNK)
    ]
    done, total = 0, sum(split.rows for split in splits)
    progress(done, total)
    blocks = computed(extractor, chunks, device)

    def checked(split: Split) -> Iterator[NDArray[np.float32]]:
        nonlocal done
        for start in range(0, split.rows, CHUNK):
            block = next(blocks)
            check_finite(block, start, extractor, split)
            yield block
            done += len(block)
            progress(done, total)

    for split in splits:
        write_matrix(split.path, np.arange(split.rows), extractor.width, checked(split))


def check_finite(
    block: NDArray[np.float32], start: int, extractor: FeatureEncoder, split: Split
) -> None:
    """Raise InputError where a feature is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        raise InputError(
            f"extractor {extractor.source!r}: task {split.task!r}: split {split.name!r}:"
            f" row {start + bad[0]}: features that are not finite; are its weights?"
        )


def computed(
    extractor: FeatureEncoder, chunks: list[Chunk], device: str
) -> Iterator[NDArray[np.float32]]:
    """Features [n, d] of each chunk, in order."""
    count = workers(extractor, chunks, device)
    if count == 0:
        extract = extractor.load(own_device(device))
        yield from (features(extractor, extract, chunk) for chunk in chunks)
        return
    import ray.data

    from actors.cluster.worker_deaths import reported

    gpu = torch.device(device).type == "cuda"
    items = [{"file": chunk.file, "start": chunk.start, "stop": chunk.stop} for chunk in chunks]
    with quiet(), reported("features: a worker"):
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_args=(extractor, "cuda" if gpu else "cpu"),
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=None if gpu else 1,
            num_gpus=1 if gpu else None,
            batch_size=1,
            batch_format="pyarrow",
            ray_remote_args_fn=lambda: {"max_restarts": RESTARTS, "max_task_retries": RESTARTS},
        )
        dataset.context.enable_progress_bars = False
        dataset.context.execution_options.preserve_order = True
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for block in table.column("features"):
                values = np.frombuffer(block.as_py(), dtype=np.float32)
                yield values.reshape(-1, extractor.width)


def workers(extractor: FeatureEncoder, chunks: list[Chunk], device: str) -> int:
    """Number of Ray Data workers to start; 0: compute in this process."""
    import ray

    work = sum(chunk.stop - chunk.start for chunk in chunks) * extractor.inputs.row.nbytes
    gpu = torch.device(device).type == "cuda"
    if not ray.is_initialized() or (work < FEW and not gpu):
        return 0
    from actors.cluster.file_visibility import workplaces

    if workplaces({str(extractor.folder), *(chunk.file for chunk in chunks)}) != {}:
        return 0  # no node sees the files; this process does
    kind = "GPU" if gpu else "CPU"
    # Count free resources only: an actor waiting for a processor of a fleet would wait forever.
    return min(int(ray.available_resources().get(kind, 0)), len(chunks))


def own_device(device: str) -> str:
    """Device for computing features in this process; see `prepare_features`."""
    import ray

    if torch.device(device).type == "cuda" and (
        ray.is_initialized() or not torch.cuda.is_available()
    ):
        return "cpu"
    return device


class Worker:
    """A Ray Data worker, which loads the extractor once."""

    def __init__(self, extractor: FeatureEncoder, device: str) -> None:
        self.extractor, self.extract = extractor, extractor.load(device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The features of one chunk, as bytes."""
        (row,) = batch.to_pylist()
        block = features(
            self.extractor, self.extract, Chunk(row["file"], row["start"], row["stop"])
        )
        return pa.table({"features": pa.array([block.tobytes()], pa.large_binary())})


def features(extractor: FeatureEncoder, extract: Extract, chunk: Chunk) -> NDArray[np.float32]:
    """The features [n, d] of a chunk of prepared rows."""
    rows, inputs = extractor.inputs.open(Path(chunk.file)), extractor.inputs
    starts = range(chunk.start, chunk.stop, BATCH)
    batches = [torch.arange(start, min(start + BATCH, chunk.stop)) for start in starts]
    blocks = [extract(inputs.collate([rows.take(at)])).float().cpu() for at in batches]
    values: NDArray[np.float32] = torch.cat(blocks).numpy()
    return values
