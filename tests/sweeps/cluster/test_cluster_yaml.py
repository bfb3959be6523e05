"""What a cluster file promises."""

import pytest

from fusion.errors import InputError
from sweeps.cluster.cluster_yaml import of_file

LOCAL = """
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
head_start_ray_commands:
  - ray stop
  - >-
    ulimit -n 65536; ray start --head --num-cpus=8 --memory=16000000000
    --dashboard-host=127.0.0.1
worker_start_ray_commands:
  - ray start --address=$RAY_HEAD_IP:6379 --num-cpus 32 --num-gpus=4 --memory=256000000000
    --labels="zone=a,ray.io/accelerator-type=H100"
"""

CLOUD = """
provider: {type: aws, region: us-west-2}
head_node_type: head
available_node_types:
  head: {resources: {CPU: 8, memory: 32000000000}, node_config: {}}
  gpu:
    resources: {CPU: 48, GPU: 4, memory: 400000000000}
    max_workers: 2
    labels: {ray.io/accelerator-type: A100-80G}
"""


def written(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_hosts_are_as_large_as_ray_start_says(tmp_path):
    head, *workers = of_file(written(tmp_path, LOCAL)).nodes
    assert (head.cpus, head.gpus, head.memory) == (8, 0, 16 * 10**9)
    assert len(workers) == 2
    assert (workers[0].cpus, workers[0].gpus, workers[0].gpu_memory) == (32, 4, 80 * 10**9)
    assert workers[0].labels["zone"] == "a"
    assert workers[0].id != workers[1].id


def test_node_types_count_at_their_largest_number(tmp_path):
    found = of_file(written(tmp_path, CLOUD), gpu_memory=40)
    assert [(node.name, node.gpus) for node in found.nodes] == [("head", 0), ("gpu", 4), ("gpu", 4)]
    assert found.gpu_memory == 40 * 10**9
    assert of_file(written(tmp_path, CLOUD)).gpu_memory == 80 * 10**9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not YAML"),
        ("a: 1", "provider: missing; a file for `ray up` is needed"),
        ("provider: {type: aws}", "available_node_types: missing"),
        (
            CLOUD.replace("CPU: 48, ", ""),
            "available_node_types.gpu.resources: CPU missing: nothing is asked of the hosts",
        ),
        (LOCAL.replace("--memory=16000000000", ""), "head_start_ray_commands: `ray start`: memory"),
    ],
)
def test_what_a_file_lacks_is_said_in_one_line(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        of_file(path)
    assert str(error.value).startswith(f"--cluster: {path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no\.yaml: No such file or directory$"):
        of_file(tmp_path / "no.yaml")
