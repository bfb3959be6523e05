"""`sweeps plan` of methods that learn: how much is learned from what, and what that reads."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

import actors.cluster.nodes
from actors.cluster.nodes import Found
from actors.cluster.planner import Node, Resources
from actors.pool.pool import open_pool
from actors.pool.vectors_low_rank import factor_vectors
from fusion.errors import InputError
from sweeps.cli.plan import show
from sweeps.cluster import ray_connection
from sweeps.planning.prepare import named_by_experts, prepare
from sweeps.planning.print_plan import learned_images
from sweeps.spec.sweep import validate
from sweeps.spec.trial_key import trial_key
from tests.actors.checkpoints.adapter_folders import write_adapter
from tests.sweeps.learning_pool import ADAMERGING, DAWE, gated_spec, make_extractor


def planned(spec: dict, folder) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(validate(spec, "s.yaml"), folder, console)
    return console.export_text()


def rows(text: str) -> dict[str, list[str]]:
    """Method -> its other cells."""
    lines = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_learning_is_counted_and_its_sources_are_named(tiny_pool, tmp_path):
    extractor = str(make_extractor(tmp_path / "resnet"))
    adamerging = {**ADAMERGING, "learning_rate": {"loguniform": [1e-4, 1e-2]}, "trials": 5,
                  "scheduler": "asha", "adapt_on": "report"}  # fmt: skip
    dawe = {**DAWE, "steps": {"grid": [0, 10, 100]}}
    spec = gated_spec(tiny_pool, extractor, adamerging=adamerging, dawe=dawe, wise_ft={
        "alpha": {"grid": [0.1, 0.9]}, "expert": "tones"})  # fmt: skip
    text = planned(spec, tmp_path)
    # 3 tasks of 80 and 60 images; 32 × 32 × 3 bytes of pixels and 4 × 8 of features an image.
    assert "420 images at 32 px: 1.3 MB of pixel cache" in text
    assert (
        f"extractor   {extractor}: 8 features, 420 images at 32 × 32 px: "
        "1.3 MB of pixel cache, 13.4 kB of features" in text
    )
    assert "learning    adapts to fit\n" in text
    assert "learning    adapts to report: the images it is reported on, without labels\n" in text
    assert "images learned from" in text
    found = rows(text)
    assert found["adamerging"][-1] == f"{5 * 9 * 8 * 3:,}"
    assert found["dawe"][-1] == f"{110 * 8 * 3:,}"
    assert found["wise_ft"][-1] == found["pretrained"][-1] == ""
    select = int(found["pretrained"][1])
    assert int(found["adamerging"][1].replace(",", "")) == 5 * 3 * select  # on three rungs
    assert int(found["dawe"][1]) == 3 * select


def test_more_candidates_than_are_known_count_as_the_largest_known(tiny_pool, tmp_path):
    steps = {"grid": [10, 20]}
    sampled = {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "trials": 50}
    adamerging = {**ADAMERGING, **sampled, "steps": steps}
    spec = gated_spec(tiny_pool, "unused", adamerging=adamerging)
    assert learned_images(validate(spec, "s"))["adamerging"] == 100 * 20 * 8 * 3


def test_nothing_learned_nothing_said(tiny_pool, tmp_path):
    text = planned(tiny_pool.spec(), tmp_path)
    for absent in ("learned from", "extractor", "adapts"):
        assert absent not in text


def test_task_vectors_that_stay_in_files_are_no_memory(tiny_pool, tmp_path):
    spec = tiny_pool.spec()
    loaded = planned(spec, tmp_path)
    filed = planned({**spec, "placement": {"weights": "files"}}, tmp_path)
    assert " base and task vectors once, " in loaded
    assert " base once, " in filed
    assert "; task vectors stay in files, made a tensor at a time\n" in filed


def test_only_nodes_that_see_the_files_take_experts_from_them(tiny_pool, tmp_path, monkeypatch):
    spec = validate({**tiny_pool.spec(), "placement": {"weights": "files"}}, "s.yaml")
    pool = open_pool(spec.pool.base, spec.pool.experts)
    nodes = tuple(Node(4, 0, 8 << 30, name=name, id=name) for name in ("near", "far"))
    sees, asked = {"near"}, []

    def ask(wanted, files):
        asked.extend(wanted)
        return {id: Found((), {}, frozenset(files if id in sees else files[1:])) for id in wanted}

    monkeypatch.setattr(actors.cluster.nodes, "ask", ask)
    monkeypatch.setattr(ray_connection, "SEEN", {})
    found = prepare(spec, tmp_path, Resources(nodes)).plan
    assert found.nodes == (("near", 4),)
    assert found.places == (("near",),)
    assert ray_connection.narrowed(pool, Resources(nodes)).nodes == nodes[:1]
    assert asked == ["near", "far"]  # once
    with pytest.raises(InputError) as caught:
        ray_connection.narrowed(pool, Resources(nodes[1:]))
    folder = next(iter(pool.experts.values())).folder
    line = str(caught.value)
    assert line.startswith("placement.weights: 'files': no node (far) sees all experts' files")
    assert str(folder) in line
    # In memory, nobody is asked, and all take part.
    asked.clear()
    plain = validate(tiny_pool.spec(), "s.yaml")
    assert len(prepare(plain, tmp_path, Resources(nodes)).plan.nodes) == 2
    assert not asked


def test_adapters_that_stay_factored(tiny_pool, tmp_path):
    spec = tiny_pool.spec()
    base = spec["pool"]["base"]
    experts = {
        task: str(write_adapter(tmp_path / task, base, seed=at))
        for at, task in enumerate(spec["pool"]["experts"])
    }
    spec |= {"pool": {"base": base, "experts": experts}}
    loaded = planned(spec, tmp_path)
    factored = planned({**spec, "placement": {"weights": "factored"}}, tmp_path)
    assert " base and task vectors once, " in loaded
    assert " base and factors once, " in factored
    assert "; task vectors stay factors, made a tensor at a time\n" in factored
    prepared = prepare(
        validate({**spec, "placement": {"weights": "factored"}}, "s.yaml"),
        tmp_path,
        ray_connection.this_machine(),
    )
    assert prepared.load.factored
    low = factor_vectors(prepared.pool)
    assert sum(prepared.load.factors) == low.factors.nbytes == 3 * 2 * 2 * 2 * (32 + 32) * 4
    experts["tones"] = tiny_pool.spec()["pool"]["experts"]["tones"]
    with pytest.raises(InputError) as caught:
        planned({**spec, "placement": {"weights": "factored"}}, tmp_path)
    assert str(caught.value) == (
        "placement.weights: factored; pool.experts.tones is a full model: memory or files"
    )


def test_routers_of_mlps_that_no_adapter_changes_are_refused(tiny_pool, tmp_path):
    spec = tiny_pool.spec()
    base = spec["pool"]["base"]
    experts = {task: str(write_adapter(tmp_path / task, base)) for task in spec["pool"]["experts"]}
    spec |= {"methods": {"ewemoe": {"steps": 1}}}
    planned(spec, tmp_path)
    with pytest.raises(InputError) as caught:
        planned({**spec, "pool": {"base": base, "experts": experts}}, tmp_path)
    assert str(caught.value) == (
        "methods.ewemoe: no expert changes an MLP, whose task vectors its routers weigh: adapters"
        " of fc1 or fc2, or full models, needed"
    )
    wider = str(write_adapter(tmp_path / "wider", base, layers=("fc2",)))
    planned({**spec, "pool": {"base": base, "experts": {**experts, "lines": wider}}}, tmp_path)


def test_where_data_and_names_come_from(tiny_pool, tmp_path):
    """Files used, files left out and why, class names, their order, templates: a line each."""
    spec = tiny_pool.spec()
    folder = tmp_path / "blobs"
    for name in ("train", "test"):
        (folder / name).mkdir(parents=True)
    table = pq.read_table(tiny_pool.root / "data/blobs/train.parquet")
    for at, (image, label) in enumerate(zip(*(table.column(c).to_pylist() for c in ("image", "label")), strict=True)):  # fmt: skip  # noqa: E501
        file = folder / ("train" if at % 4 else "test") / ("left", "right")[label] / f"{at}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(image["bytes"])
    (folder / "train/left/._1.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    (folder / "dev").mkdir()
    (folder / "dev/1.png").write_bytes(b"x")
    spec["tasks"]["blobs"] = {"dataset": str(folder), "templates": ["{}!"]}
    text = planned(spec, tmp_path)
    for line in (
        "task        lines: train 80, test 60 images in 2 files\n",
        "task        lines: 2 classes ('flat', 'steep'): names and their order from ClassLabel;"
        " templates the default\n",
        "task        blobs: train 60, test 20 images in 80 files\n",
        "task        blobs: 2 classes ('left', 'right'): names and their order from folder names;"
        " templates in the spec\n",
        "task        blobs: not used, for want of labels: validation\n",
        "task        blobs: 1 files left out: hidden, or left by an editor or archive"
        " (train/left/._1.png)\n",
        "task        blobs: 1 files left out: no data, or of a format that is not read"
        " (notes.txt)\n",
    ):
        assert line in text


def test_prefixes_of_wrappers_are_said(tiny_pool, tmp_path):
    spec = tiny_pool.spec()
    shutil.copytree(spec["pool"]["experts"]["tones"], tmp_path / "tones")
    file = tmp_path / "tones/model.safetensors"
    save_file({f"_orig_mod.{name}": each for name, each in load_file(file).items()}, file)
    assert "left out" not in planned(spec, tmp_path).split("data ")[0]
    spec["pool"]["experts"]["tones"] = str(tmp_path / "tones")
    wanted = "names       '_orig_mod.' is left out of all names of pool.experts.tones\n"
    assert wanted in planned(spec, tmp_path)


def test_a_sweep_file_without_tasks_says_where_the_names_of_data_are_from(tiny_pool):
    content = tiny_pool.spec()
    with (
        pytest.raises(InputError, match=r"^tasks\.a: no such data$"),
        named_by_experts(validate(content, "s.yaml")),
    ):
        raise InputError("tasks.a: no such data")
    del content["tasks"]
    with (
        pytest.raises(InputError, match="no such data; the sweep file has no `tasks`, so each exp"),
        named_by_experts(validate(content, "s.yaml")),
    ):
        raise InputError("tasks.a: no such data")


def test_finished_models_are_said_with_their_memory(tiny_pool, tmp_path):
    spec = tiny_pool.spec()
    pool = spec["pool"]
    other = shutil.copytree(tiny_pool.root / "base", tmp_path / "other")
    tensors = {k: v + 0.01 if "vision_model.encoder" in k else v
               for k, v in load_file(other / "model.safetensors").items()}  # fmt: skip
    save_file(tensors, other / "model.safetensors")
    spec["references"] = {"mtl": str(other), "twin": pool["experts"]["tones"]}
    text = planned(spec, tmp_path)
    assert f"reference   mtl: {other}: up to " in text
    assert f"reference   twin: {pool['experts']['tones']}: the same files as tones\n" in text
    assert [cells[0] for name, cells in rows(text).items() if name in ("mtl", "twin")] == ["1", "1"]
    machine = Resources((Node(2, 0, 8 << 30),))
    prepared, plain = (
        prepare(validate(each, "s.yaml"), tmp_path, machine) for each in (spec, tiny_pool.spec())
    )
    assert prepared.load.references == 1
    assert prepared.plan.store_bytes > plain.plan.store_bytes
    assert prepared.context().common == plain.context().common
    keys = [trial_key("mtl", {}, each.context()) for each in (prepared, plain)]
    assert keys[0] != keys[1]
    assert trial_key("ties", {}, prepared.context()) == trial_key("ties", {}, plain.context())


def test_a_finished_model_with_another_preprocessing_is_refused(tiny_pool, tmp_path):
    spec = tiny_pool.spec()
    other = shutil.copytree(tiny_pool.root / "base", tmp_path / "other")
    file = other / "preprocessor_config.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "image_mean": [0.1, 0.2, 0.3]}))
    spec["references"] = {"mtl": str(other)}
    with pytest.raises(
        InputError, match=r"references\.mtl: .*accept that with `pool.preprocessing"
    ):
        planned(spec, tmp_path)
    spec["pool"]["preprocessing"] = "base"
    assert "mtl: prepared as the base's file says; its own differs" in planned(spec, tmp_path)


def test_a_plan_names_the_methods_that_are_raced(tiny_pool, tmp_path):
    methods = {
        "ties": {"scale": {"grid": [0.5, 1.0]}},
        "task_arithmetic": {"scale": {"uniform": [0, 1]}, "trials": 4, "searcher": "tpe"},
        "wise_ft": {"alpha": 0.5, "expert": "lines"},
    }
    text = planned(tiny_pool.spec(methods=methods, evaluate="racing"), tmp_path)
    assert "ties: candidates that cannot win are stopped; the best is always found" in text
    assert "not task_arithmetic, whose searcher needs every result" in text
    sure = {"racing": {"confidence": 0.99}}
    assert "at least 0.99" in planned(tiny_pool.spec(methods=methods, evaluate=sure), tmp_path)
    assert "racing" not in planned(tiny_pool.spec(methods=methods), tmp_path)
