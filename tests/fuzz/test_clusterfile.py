"""Cluster files: refused in one line, or sizes that are numbers."""

import pytest
import yaml
from hypothesis import given

from actors.families.clip.architecture import vision_fields, vision_tensors
from fusion.errors import InputError
from sweeps.cli.ray_job import expected_nodes
from sweeps.cluster.cluster_yaml import of_file
from tests.fuzz.damage import altered, mutated, only_input_errors

START = "ray start --head --num-cpus=8 --num-gpus=1 --memory=1000000 --labels=a=b"
HOSTS = {
    "provider": {"type": "local", "head_ip": "h", "worker_ips": ["a", "b"]},
    "head_start_ray_commands": ["ray stop", START],
    "worker_start_ray_commands": [START],
}
CLOUD = {
    "provider": {"type": "aws"},
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4, "memory": 10**9}, "labels": {"z": "a"}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1, "memory": 10**9}, "max_workers": 3,
                "min_workers": 1},
    },
}  # fmt: skip


def planned(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "cluster.yaml"
    file.write_bytes(content)
    with only_input_errors():
        found = of_file(file)
        assert len(found.nodes) <= 200
        assert all(0 <= node.memory < 1e18 and node.cpus >= 0 for node in found.nodes)
    with only_input_errors():
        assert 1 <= expected_nodes(file) < 10**9


@given(mutated(CLOUD))
def test_any_field_of_a_clouds(tmp_path_factory, content):
    planned(tmp_path_factory, yaml.dump(content).encode(errors="replace"))


@given(mutated(HOSTS))
def test_any_field_of_hosts(tmp_path_factory, content):
    planned(tmp_path_factory, yaml.dump(content).encode(errors="replace"))


@given(altered(yaml.safe_dump(HOSTS).encode()))
def test_damaged_bytes(tmp_path_factory, data):
    planned(tmp_path_factory, data)


@pytest.mark.parametrize(
    ("option", "said"),
    [("--num-cpus=x", "a number needed"), ("--num-cpus=nan", "at least 0"),
     ("--memory=-1", "at least 0"), ("--memory=inf", "below 1e18"), ("'", "No closing quotation")],
)  # fmt: skip
def test_options_that_are_no_sizes(tmp_path, option, said):
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(HOSTS | {"head_start_ray_commands": [f"{START} {option}"]}))
    with pytest.raises(InputError, match=said):
        of_file(file)


VISION = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_channels": 3, "image_size": 32, "patch_size": 8, "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip


@given(mutated({"model_type": "clip", "vision_config": VISION}))
def test_any_field_of_a_models_configuration(content):
    with only_input_errors():
        assert len(vision_tensors(vision_fields(content, "config.json"))) < 5000


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 10**12), ("num_hidden_layers", 1e12), ("image_size", 10**9),
     ("patch_size", 0), ("patch_size", 64), ("hidden_size", 66), ("hidden_size", -64),
     ("num_attention_heads", True), ("num_channels", None), ("layer_norm_eps", float("nan")),
     ("hidden_act", ["gelu"]), ("intermediate_size", "128")],
)  # fmt: skip
def test_numbers_that_no_tower_has(field, value):
    with pytest.raises(InputError, match=f"config.json: (hidden_size|{field}): "):
        vision_fields({**VISION, field: value}, "config.json")
