"""Ledger entries, `sweep.json`, owners: damaged ones count as none, and touch nothing elsewhere."""

import json
from contextlib import suppress
from dataclasses import asdict

import pytest
from hypothesis import given

from fusion.errors import InputError
from sweeps.results.folder import Identity, SweepFolder, parse_identity
from sweeps.results.ledger import Entry, Ledger, dump_entry
from sweeps.results.owner import Owner, read_owner
from sweeps.storage.fetch import place_of, rank
from tests.fuzz.damage import altered, mutated, only_input_errors

KEY = "0123456789abcdef"
ENTRY = Entry(
    KEY, "ties", "static", {"density": 0.2, "layers": ["a"]}, "failed", "select",
    metrics={"acc/mean": 0.5}, n={"mnist": 10}, trial_s=1.5, peak_bytes=7, started="2026-01-01",
    ended="2026-01-02", seed=3, steps=2, curve=[{"step": 1, "loss": 0.5}],
    choices=[{"candidate": "a"}], error="boom",
)  # fmt: skip
TEXT = dump_entry(ENTRY).encode()
IDENTITY = Identity("a" * 32, "b" * 16, "2026-01-01").having("c" * 16)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A ledger's folder, beside files that nothing of it may touch."""
    root = tmp_path_factory.mktemp("outputs")
    for name in ("victim.json", "ledger.json", f"{KEY}.json"):
        (root / name).write_text("precious")
    (root / "sweep" / "ledger").mkdir(parents=True)
    return root


def untouched(root):
    found = {path.name: path.read_text() for path in root.iterdir() if path.is_file()}
    return found == dict.fromkeys(("victim.json", "ledger.json", f"{KEY}.json"), "precious")


def looked_at(root, data):
    """What every caller of a ledger does, on an entry with this content."""
    ledger = Ledger(root / "sweep" / "ledger")
    (ledger.folder / f"{KEY}.json").write_bytes(data)
    found = list(ledger)
    rank(data, f"{KEY}.json")
    ledger.clear_failed()
    ledger.set_aside()
    for left in ledger.folder.iterdir():
        left.unlink()
    return found


@given(altered(TEXT))
def test_damaged_bytes_of_an_entry_count_as_none(place, data):
    found = looked_at(place, data)
    assert found in ([], [ENTRY])
    assert untouched(place)


@given(mutated({**asdict(ENTRY), "check": json.loads(TEXT)["check"]}))
def test_any_field_of_an_entry(place, content):
    found = looked_at(place, json.dumps(content).encode())
    assert found in ([], [ENTRY])  # all that is not the file's own content is refused
    assert untouched(place)


@given(mutated(asdict(ENTRY)))
def test_any_field_of_an_entry_without_a_hash(place, content):
    for entry in looked_at(place, json.dumps(content).encode()):
        assert entry.trial_key == KEY
        dump_entry(entry).encode()
    assert untouched(place)


@given(mutated(json.loads(IDENTITY.dump())))
def test_any_field_of_sweep_json(content):
    with only_input_errors():
        found = parse_identity(json.dumps(content).encode(), "sweep.json")
        own = [f"specs/{each['spec_hash']}.yaml" for each in found.history]
        assert found.spec_file == (own or ["spec.yaml"])[-1]


@given(altered(IDENTITY.dump().encode()))
def test_damaged_bytes_of_sweep_json(data):
    with only_input_errors():
        parse_identity(data, "sweep.json")


@given(mutated(json.loads(Owner().dump())))
def test_any_field_of_an_owner(content):
    owner = read_owner(json.dumps(content).encode())
    if owner is not None:
        assert isinstance(owner.alive, bool)
        assert owner.words()
        assert owner.state_text()


@pytest.mark.parametrize(
    "name",
    ["../x.json", "ledger/../../x.json", "/etc/passwd", "ledger//x.json", "ledger/.x.json",
     "x.json", "ledger/x.txt", "ledger\\x.json", "recipes/a/b.yaml", "tune/x.json",
     "", "ledger/", "ledger"],
)  # fmt: skip
def test_a_name_that_a_storage_lists_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(InputError):
        place_of(SweepFolder(tmp_path), name, "s3://b")


def test_names_of_a_sweep_are_taken(tmp_path):
    for name in (f"ledger/{KEY}.json", "sweep.json", "owner.json", f"learned/{KEY}.safetensors"):
        with suppress(AttributeError):
            assert place_of(SweepFolder(tmp_path), name, "s3://b") == tmp_path / name
