"""Image folders with any tree of names: each file is used once or left out, and counted."""

import io
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actors.data.dataset_files import Columns, open_folder
from actors.data.readers import read
from tests.fuzz.damage import only_input_errors


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 3)).save(file, "PNG")
    return file.getvalue()


PNG = picture()

PARTS = st.one_of(
    st.sampled_from(
        [
            *("train", "test", "val", "dev", "Train", "TEST", "train_1", "my test", "train-test"),
            *("cat", "dog", "0", "10", "9", "data", "images"),
            *(".git", ".cat", "__MACOSX", "cat~", "@eaDir"),
        ]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
        lambda text: text not in (".", "..") and len(text.encode()) < 100
    ),
)
ENDS = st.sampled_from([".png"] * 6 + [".JPG", ".txt", ".png~", "", ".parquet", ".csv", ".tiff"])


@st.composite
def trees(draw: st.DrawFn) -> list[str]:
    count = draw(st.integers(1, 8))
    return [
        "/".join([*draw(st.lists(PARTS, max_size=4)), draw(PARTS) + draw(ENDS)])
        for _ in range(count)
    ]


@given(trees())
def test_every_file_is_used_once_or_left_out(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in names:
            file = folder / name
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(PNG)
            except OSError:  # a name that is a file and a folder at once
                continue
        written = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
        with only_input_errors():
            layout = open_folder(folder, Columns(("image",), "label"), "tasks.x")
            used = [
                str(Path(str(content)).relative_to(folder))
                for split in layout.splits.values()
                for _, rows in split.chunks(2)
                for content, _, _ in read(rows)
            ]
            assert len(used) == len(set(used)) == layout.used
            assert set(used) <= written
            for name in used:
                parts = Path(name).parts
                assert not any(part.startswith((".", "__")) for part in parts[:-1])
                assert not parts[-1].startswith(".")
