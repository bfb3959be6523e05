"""What learning methods need is found before anything starts."""

import pytest
import torch

from actors.artifacts.gate_file import Manifest, dump, write
from fusion.errors import InputError
from fusion.methods.learned.gate import Gate
from sweeps.planning.learning_needs import needs_of
from sweeps.spec.sweep import validate
from tests.sweeps.learning_pool import DAWE, gated_spec, make_extractor

TASKS = ("lines", "tones", "blobs")
GROUPS = ("a", "b")


def needs(spec):
    return needs_of(validate(spec, "s.yaml"), TASKS, GROUPS)


def test_static_methods_need_nothing(tiny_pool):
    found = needs(tiny_pool.spec())
    assert (dict(found.extractors), found.images, found.adapts_on) == ({}, 0, frozenset())


def test_extractors_roles_and_images_of_every_candidate(tiny_pool, tmp_path):
    one, two = (
        str(make_extractor(tmp_path / name, width)) for name, width in (("r", 8), ("s", 16))
    )
    spec = gated_spec(tiny_pool, one)
    spec["methods"]["dawe"]["extractor"] = {"grid": [one, two]}
    spec["methods"]["dawe"]["adapt_on"] = {"grid": ["fit", "report"]}
    spec["methods"]["adamerging"]["density"] = 0.2
    found = needs(spec)
    assert {source: e.width for source, e in found.extractors.items()} == {
        (one, False): 8, (two, False): 16,
    }  # fmt: skip
    assert found.adapts_on == {"fit", "report"}
    assert found.images == 3 * spec["methods"]["adamerging"]["batch_size"]
    assert found.stacked == 3 * dawe_batch(spec)
    assert found.transformed


def dawe_batch(spec):
    """Images of each task in a step of the gate."""
    return spec["methods"]["dawe"].get("batch_size", 16)


def gate_file(path, extractor, **changes):
    from actors.gate_features.extractor import open_extractor

    opened = open_extractor(str(extractor), "x")
    facts = {"width": opened.width, "tasks": TASKS, "grouping": "task", "keys": ()}
    facts |= {"extractor_hash": opened.fingerprint, **changes}
    gate = Gate(facts["width"], len(facts["tasks"]), max(1, len(facts["keys"])))
    manifest = Manifest(
        method="dawe", extractor=str(extractor), preprocessing="p", steps=1, **facts, **gate.options
    )
    write(path, dump(gate, manifest))
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"width": 5}, "width: 5"),
        ({"tasks": ("lines", "blobs", "tones")}, "order"),
        ({"tasks": ("lines", "tones", "cars")}, "cars"),
        ({"extractor_hash": "other"}, "extractor_hash: 'other'"),
        ({"grouping": "layer", "keys": GROUPS}, "grouping 'layer'; 'task' is asked for"),
    ],
    ids=str,
)
def test_a_gate_that_does_not_fit_is_one_line(changes, expected, tiny_pool, tmp_path):
    extractor = make_extractor(tmp_path / "r", 8)
    path = gate_file(tmp_path / "gate.safetensors", extractor, **changes)
    spec = gated_spec(tiny_pool, str(extractor), dawe={**DAWE, "gate": str(path), "steps": 0})
    with pytest.raises(InputError, match=r"methods\.dawe: gate.*" + expected) as said:
        needs(spec)
    assert "\n" not in str(said.value)


def test_a_gate_that_fits_is_the_router(tiny_pool, tmp_path):
    from fusion.registry import METHODS
    from sweeps.planning.learning_needs import learning_of, learning_points

    extractor = make_extractor(tmp_path / "r", 8)
    path = gate_file(tmp_path / "gate.safetensors", extractor)
    spec = gated_spec(tiny_pool, str(extractor), dawe={**DAWE, "gate": str(path), "steps": 0})
    found = needs(spec)
    assert list(found.gates) == [str(path)]
    params = next(p for name, _, p in learning_points(validate(spec, "s")) if name == "dawe")
    learning = learning_of(METHODS["dawe"], params, TASKS, GROUPS, found.extractors)
    coding = learning.router(torch.zeros(2, 8))
    assert coding.shape == (2, 3, 1)


@pytest.mark.parametrize("source", ["./nowhere", "/dev/null"])
def test_an_extractor_that_is_not_there(source, tiny_pool):
    with pytest.raises(InputError, match=r"methods\.dawe\.extractor"):
        needs(gated_spec(tiny_pool, source))


@pytest.mark.parametrize("layered", [False, True])
def test_a_published_gate_is_imported_by_its_layout(layered, tiny_pool, tmp_path):
    from safetensors.torch import save_file

    from actors.families.clip.published_gates import openclip_keys
    from actors.pool.pool import open_pool
    from fusion.registry import METHODS
    from sweeps.planning.learning_needs import learning_of, learning_points

    root, extractor = tiny_pool.root, make_extractor(tmp_path / "r", 8)
    pool = open_pool(str(root / "base"), {task: str(root / "experts" / task) for task in TASKS})
    outputs = 3 * (len(openclip_keys(2)) if layered else 1)
    published = {
        "0.weight": torch.zeros(8, 8), "0.bias": torch.ones(8),
        "2.weight": torch.zeros(outputs, 8), "2.bias": torch.arange(float(outputs)),
    }  # fmt: skip
    path = tmp_path / "dict_mapping_step=1000.safetensors"
    save_file(published, path)
    dawe = {**DAWE, "gate": str(path), "steps": 0, "grouping": "layer" if layered else "task"}
    spec = validate(gated_spec(tiny_pool, str(extractor), dawe=dawe), "s")
    found = needs_of(spec, pool.tasks, pool.groups)
    params = next(p for name, _, p in learning_points(spec) if name == "dawe")
    learning = learning_of(METHODS["dawe"], params, pool.tasks, pool.groups, found.extractors)
    coding = learning.router(torch.zeros(1, 8))
    assert coding.shape == (1, 3, len(pool.groups) if layered else 1)
    if layered:  # q and k share the coefficient of the joint weight they were cut from
        at = pool.groups.index
        name = "encoder.layers.0.self_attn.{}_proj.weight"
        assert torch.equal(coding[..., at(name.format("q"))], coding[..., at(name.format("k"))])
    wrong = gated_spec(tiny_pool, str(extractor), dawe={**dawe, "grouping": "layer"})
    if not layered:
        with pytest.raises(InputError, match="grouping 'task'; 'layer' is asked for"):
            needs_of(validate(wrong, "s"), pool.tasks, pool.groups)
