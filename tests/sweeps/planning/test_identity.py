"""What a sweep's numbers depend on: every file and field changes the keys, or is known not to."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.artifacts.recipe import Recipe
from actors.cluster.planner import Node, Resources
from actors.data.images.preprocessor_config import read_preprocess
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.families.clip.zero_shot_heads import open_tokenizer
from actors.files.cache_dir import cache_dir
from fusion.errors import InputError
from sweeps.execution.stale_trials import SUPERSEDED, renew
from sweeps.planning.prepare import prepare
from sweeps.planning.prepared import Prepared, decisive
from sweeps.planning.shift_data import shift_fingerprint
from sweeps.results.folder import SweepFolder
from sweeps.results.ledger import Entry, Stopped
from sweeps.spec.sweep import PlacementSpec, spec_hash, validate
from sweeps.spec.trial_key import trial_key
from tests.tiny_pool import TinyPool

MACHINE = Resources((Node(2, 0, 8 << 30),))

IRRELEVANT = {
    "do_convert_rgb": "images are made RGB always; false is refused",
    "image_processor_type": "other kinds are refused; all kinds of CLIP's do the same",
    "do_resize": "true is the default; false is another geometry, or refused",
    "do_center_crop": "likewise",
    "do_rescale": "likewise",
    "do_normalize": "likewise",
}
"""Fields of a preprocessor file that may leave the keys as they are, and why."""


@pytest.fixture
def pool(tiny_pool, tmp_path) -> TinyPool:
    """A copy that may be changed; only the base says how images are prepared."""
    shutil.copytree(tiny_pool.root, tmp_path / "pool")
    for file in (tmp_path / "pool" / "experts").glob("*/p*processor_config.json"):
        file.unlink()
    return TinyPool(tmp_path / "pool")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))


def prepared_of(pool: TinyPool, **changes) -> Prepared:
    return prepare(validate(pool.spec(**changes), "spec"), pool.root, MACHINE)


def keys(prepared: Prepared) -> tuple[str, ...]:
    context = prepared.context()
    return trial_key("ties", {}, context), *prepared.embeddings().identity.values()


def edit(file: Path, **fields) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def outcome(pool: TinyPool) -> tuple[str, ...] | str:
    try:
        return keys(prepared_of(pool))
    except InputError as error:
        return f"refused: {error}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_mean", [0.1, 0.2, 0.3]),
        ("image_std", [0.5, 0.5, 0.5]),
        ("rescale_factor", 0.5),
        ("resample", 2),
        ("size", {"shortest_edge": 40}),
        ("do_rescale", False),
        ("do_normalize", False),
    ],
)
def test_preprocessing_of_the_base_changes_every_key(pool, field, value):
    before = keys(prepared_of(pool))
    edit(pool.root / "base" / "preprocessor_config.json", **{field: value})
    after = keys(prepared_of(pool))
    assert not set(before) & set(after)


def test_every_field_of_the_preprocessor_file(pool):
    file = pool.root / "base" / "preprocessor_config.json"
    content = json.loads(file.read_text())

    def kept(changed: dict) -> bool:
        file.write_text(json.dumps(changed))
        try:
            return read_preprocess(file.parent).fingerprint == before
        except InputError:
            return False

    before = read_preprocess(file.parent).fingerprint
    found = set()
    for field in content:
        others = (None, 7, [0.1, 0.2, 0.3], {"shortest_edge": 33}, False)
        changes = [{**content, field: other} for other in others if other != content[field]]
        found |= {field for change in changes if kept(change)}
    assert found <= IRRELEVANT.keys(), found


def test_every_file_of_base_experts_and_data_changes_the_key_of_trials(pool):
    before = keys(prepared_of(pool))[0]
    files = [
        *(pool.root / "base").glob("*.json"),
        pool.root / "experts" / "tones" / "config.json",
    ]
    seen = {before}
    for file in files:
        text = file.read_text()
        content = json.loads(text)
        if file.name == "preprocessor_config.json":
            content["image_mean"] = [0.1, 0.2, 0.3]
        else:
            content["added_by_a_test"] = 1
        file.write_text(json.dumps(content))
        found = outcome(pool)
        assert isinstance(found, str) or found[0] not in seen, file
        seen |= {found[0]} if isinstance(found, tuple) else set()
        file.write_text(text)
    assert keys(prepared_of(pool))[0] == before
    weights = pool.root / "experts" / "tones" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    seen.add(keys(prepared_of(pool))[0])
    assert before in seen
    data_file = pool.root / "data/lines/test.parquet"
    table = pq.read_table(data_file)
    pq.write_table(table.slice(1), data_file)
    assert keys(prepared_of(pool))[0] not in seen


def test_a_tokenizer_is_loaded_from_the_files_that_are_hashed_and_from_no_other(pool):
    from actors.families.registry import inspect

    base = inspect(str(pool.root / "base"), "pool.base")
    found = open_tokenizer(base)
    assert set(found.files) >= {"tokenizer.json", "config.json"}
    one = found.load()("a photo")["input_ids"]
    tokenizer = json.loads((base.folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:1] + tokenizer["added_tokens"][1:]
    tokenizer["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (base.folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    changed = open_tokenizer(base)
    assert changed.fingerprint != found.fingerprint
    assert len(one) > 3


def measured(prepared: Prepared) -> dict[str, torch.Tensor]:
    data = prepare_data(
        prepared.pool.base, prepared.tasks, prepared.splits, ["select"], cache_dir()
    )
    experts = local_experts(prepared.pool, data, prepared.embeddings())
    found = {}
    for method in ("experts", "ensemble", "simple_average"):
        logits = experts.logits(Recipe(method, {}), "select")
        found |= {f"{method} {task}": z.clone() for task, z in logits.items()}
    return found


def test_cold_is_warm_after_another_preprocessing(pool, tmp_path, monkeypatch):
    first = measured(prepared_of(pool))
    edit(pool.root / "base" / "preprocessor_config.json", image_mean=[0.9, 0.1, 0.2])
    warm = measured(prepared_of(pool))
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cold"))
    cold = measured(prepared_of(pool))
    for name, logits in warm.items():
        assert torch.equal(logits, cold[name]), name
        assert not torch.equal(logits, first[name]), name


def test_trials_of_other_files_are_set_aside_and_run_again(pool, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.ledger.folder.mkdir(parents=True)
    context = prepared_of(pool).context()
    for method, params in (("pretrained", {}), ("ties", {"density": 0.3}), ("experts", {})):
        key = trial_key(method, params, context)
        folder.ledger.add(Entry(key, method, "static", params, "done", "select", {"acc/mean": 0.5}))
    said: list[str] = []
    renew(folder, context, said.append)
    assert len(list(folder.ledger)) == 3
    assert not said
    edit(pool.root / "base" / "preprocessor_config.json", image_std=[0.5, 0.5, 0.5])
    renew(folder, prepared_of(pool).context(), said.append)
    assert not list(folder.ledger)
    assert len(list((folder.path / SUPERSEDED).iterdir())) == 3
    assert said[0].startswith("3 finished trials of other files, settings or versions than now")


def test_a_stopped_trial_stays_stopped_while_what_beat_it_is_there(pool, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.ledger.folder.mkdir(parents=True)
    context = prepared_of(pool).context()
    stopped = Stopped("acc/mean", best=0.6, at_most=0.5, rows=10, of=30)
    keys = [trial_key("ties", {"scale": scale}, context) for scale in (0.5, 1.0)]
    best = Entry(keys[0], "ties", "static", {"scale": 0.5}, "done", "select", {"acc/mean": 0.6})
    folder.ledger.add(best)
    folder.ledger.add(
        Entry(keys[1], "ties", "static", {"scale": 1.0}, "stopped", "select", stopped=stopped)
    )
    said: list[str] = []
    renew(folder, context, said.append)
    assert len(list(folder.ledger)) == 2
    renew(folder, context, said.append, metric="acc/lines")
    assert [each.trial_key for each in folder.ledger] == [keys[0]]
    assert said == ["ties: stopped in a race that no longer holds; the trial runs again"]


def test_a_trial_whose_learned_file_is_damaged_runs_again(pool, tmp_path):
    from actors.artifacts.coding_file import dump_shares

    folder = SweepFolder(tmp_path / "sweep")
    folder.learned.mkdir(parents=True)
    folder.ledger.folder.mkdir(parents=True)
    context = prepared_of(pool).context()
    key = trial_key("adamerging", {}, context)
    folder.ledger.add(Entry(key, "adamerging", "adaptive", {}, "done", "select"))
    file = folder.learned / f"{key}.safetensors"
    file.write_bytes(dump_shares([0.1, 0.2, 0.3], ("lines", "tones", "blobs")))
    said: list[str] = []
    renew(folder, context, said.append)
    assert not said
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    renew(folder, context, said.append)
    assert not list(folder.ledger)
    assert "the trial runs again" in said[0]


def test_where_numbers_are_computed_is_no_part_of_what_they_are_and_all_else_is():
    plain = decisive(PlacementSpec())
    assert (
        decisive(PlacementSpec(replicas=3, shards=2, weights="files", transport="direct")) == plain
    )
    for change in (
        {"dtype": "bfloat16"},
        {"weights": "factored"},
        {"result_dtype": "float32"},
        {"delta_dtype": "bfloat16"},
    ):
        assert decisive(PlacementSpec(**change)) != plain


def test_precision_is_in_keys_where_it_is_not_fp32(pool):
    plain = prepared_of(pool)
    named = prepared_of(pool, placement={"precision": "fp32", "report_precision": "fp32"})
    assert named.context() == plain.context()
    assert spec_hash(named.spec) == spec_hash(plain.spec)
    others = [
        prepared_of(pool, placement=given)
        for given in (
            {"precision": "bf16"},
            {"report_precision": "bf16"},
            {"precision": "bf16", "report_precision": "bf16"},
        )
    ]
    contexts = {str(each.context().common) for each in (plain, *others)}
    assert len(contexts) == len({spec_hash(each.spec) for each in (plain, *others)}) == 4
    # Embeddings have their precision in each file's name.
    assert all(each.embeddings() == plain.embeddings() for each in others)


def test_keys_and_embeddings_of_rounded_task_vectors_are_their_own(pool):
    plain, named, rounded = (
        prepared_of(pool, placement=given)
        for given in ({}, {"delta_dtype": "float32"}, {"delta_dtype": "bfloat16"})
    )
    assert named.context() == plain.context()
    assert spec_hash(named.spec) == spec_hash(plain.spec)
    assert rounded.context() != plain.context()
    assert spec_hash(rounded.spec) != spec_hash(plain.spec)
    for name in ("pretrained", *plain.pool.tasks):
        assert rounded.embeddings().identity[name] != plain.embeddings().identity[name]
    assert rounded.load.delta_itemsize == 2
    assert plain.load.delta_itemsize == 4


def test_what_a_file_without_precisions_is_keyed_by_has_not_changed():
    """Keys of finished trials depend on it: one more field, and all of them run again."""
    assert decisive(PlacementSpec()) == {
        "weights": "memory", "dtype": "float32", "result_dtype": "base"
    }  # fmt: skip
    assert PlacementSpec().reduced == {}


def test_task_vectors_in_float64_are_not_rounded(pool):
    for expert in ("tones", "lines"):
        file = pool.root / "experts" / expert / "model.safetensors"
        save_file({name: tensor.double() for name, tensor in load_file(file).items()}, file)
    assert prepared_of(pool).load.delta_itemsize == 4
    with pytest.raises(InputError, match="delta_dtype: 'bfloat16'; task vectors of models in flo"):
        prepared_of(pool, placement={"delta_dtype": "bfloat16"})


def test_precisions_that_are_not_for_cpus(pool):
    with pytest.raises(InputError) as refused:
        prepared_of(pool, placement={"precision": "tf32"})
    assert str(refused.value) == (
        "placement.precision: 'tf32'; CPUs have no TF32: fp32 or bf16 allowed"
    )
    with pytest.raises(InputError) as refused:
        prepared_of(pool, placement={"dtype": "float16"})
    assert str(refused.value) == (
        "placement.dtype: 'float16'; on CPUs products in float16 are slower than in float32:"
        " bfloat16 or float32 allowed"
    )


def test_a_shift_set_is_its_content(pool):
    def mark() -> str:
        shifts = {"far": {"dataset": str(pool.root / "data/far"), "task": "lines"}}
        prepared = prepared_of(pool, shifts=shifts)
        return shift_fingerprint(prepared.spec.shifts, "far", prepared.others)

    shutil.copytree(pool.root / "data/lines", pool.root / "data/far")
    before = mark()
    shutil.copy(pool.root / "data/lines/train.parquet", pool.root / "data/far/test.parquet")
    assert mark() != before


@pytest.mark.parametrize("kind", ["model", "processor"])
def test_an_expert_that_brings_another_preprocessing(pool, kind):
    own = json.loads((pool.root / "base" / "preprocessor_config.json").read_text())
    file = pool.root / "experts" / "tones" / "preprocessor_config.json"
    if kind == "processor":
        file = file.with_name("processor_config.json")

    def put(content) -> None:
        file.write_text(json.dumps(content if kind == "model" else {"image_processor": content}))

    put(own)
    assert not prepared_of(pool).otherwise
    put({**own, "image_mean": [0.5, 0.5, 0.5]})
    with pytest.raises(InputError) as caught:
        prepared_of(pool)
    said = str(caught.value)
    assert said.startswith(f"pool.experts.tones: {file}: image_mean: (0.5, 0.5, 0.5); ")
    assert str(pool.root / "base" / "preprocessor_config.json") in said
    assert "\n" not in said
    spec = pool.spec()
    spec["pool"]["preprocessing"] = "base"
    accepted = prepare(validate(spec, "spec"), pool.root, MACHINE)
    assert list(accepted.otherwise) == ["tones"]
    file.unlink()
    assert keys(prepared_of(pool)) == keys(accepted)
