"""Sweeps as jobs: what is asked of Ray, and what is refused before anything is asked."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusion.errors import InputError
from sweeps.cli import ray_job
from sweeps.storage.outputs_dir import outputs_dir

PROJECT = Path(__file__).parents[2]
SPEC = """
name: tiny
pool: {base: models/base, experts: {a: models/a, b: models/b}}
tasks: {a: {dataset: data/a}, b: {dataset: data/b}}
methods: {simple_average: {}}
"""


class FakeServer:
    """A job server that notes what it is given, and whose jobs end at once."""

    def __init__(self, code: int | None = 0, status: str = "SUCCEEDED") -> None:
        self.code, self.status = code, status
        self.given: dict[str, Any] = {}

    def submit_job(self, **given: Any) -> str:
        self.given = given
        return str(given["submission_id"])

    async def tail_job_logs(self, job: str) -> Any:
        yield "from the job\n"

    def get_job_info(self, job: str) -> Any:
        from ray.job_submission import JobStatus

        class Info:
            status, driver_exit_code, message = JobStatus(self.status), self.code, "lost its node"

        return Info


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setattr(ray_job, "connected", lambda: fake)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return fake


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a sweep.yaml").write_text(SPEC)
    return tmp_path / "a sweep.yaml"


def test_a_sweep_is_submitted_with_this_hosts_code_and_followed(
    server: FakeServer, spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", "/cache")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    with pytest.raises(SystemExit) as end:
        ray_job.launch([spec.name, "--resume", "--wait-nodes", "3"])
    assert end.value.code == 0
    given = server.given
    assert re.fullmatch(r"sweep-tiny-\d{8}-\d{6}", given["submission_id"])
    assert given["metadata"]["sweep"] == "tiny"
    assert given["entrypoint"] == (
        f"cd {PROJECT} && exec {sys.executable} -m sweeps.launch"
        f" '{spec}' --resume --wait-nodes 3 --wait 300"
    )
    environment = given["runtime_env"]
    assert environment["working_dir"] == str(PROJECT)
    assert "/tests" in environment["excludes"]
    assert not {"/fusion", "/actors", "/sweeps"} & set(environment["excludes"])
    assert environment["env_vars"]["FUSION_SWEEPS_CACHE"] == "/cache"
    assert environment["env_vars"]["MLFLOW_TRACKING_URI"] == "http://mlflow"
    assert "hush" not in str(given)
    said = capsys.readouterr().out
    assert f"ray job stop {given['submission_id']}" in said
    assert said.endswith("from the job\n")


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        (1, "FAILED", 1),
        (2, "FAILED", 2),
        (None, "FAILED", 70),
        (-9, "FAILED", 137),
        (None, "STOPPED", 130),
    ],
)
def test_the_sweeps_status_is_the_launchers(
    server: FakeServer, spec: Path, code: int | None, status: str, expected: int
) -> None:
    server.code, server.status = code, status
    with pytest.raises(SystemExit) as end:
        ray_job.launch([spec.name])
    assert end.value.code == expected


def test_a_sweep_file_that_is_not_here_is_told_with_the_way_to_send_it(
    server: FakeServer, spec: Path
) -> None:
    with pytest.raises(InputError, match=r"^b\.yaml: no such file on .*ray rsync-up") as error:
        ray_job.launch(["b.yaml"])
    assert str(spec.parent / "b.yaml") in str(error.value)
    assert "\n" not in str(error.value)
    assert not server.given


def test_a_sweep_file_of_the_project_is_found_from_anywhere(server: FakeServer, spec: Path) -> None:
    with pytest.raises(SystemExit):
        ray_job.launch(["sweeps/configs/quickstart.yaml"])
    assert str(PROJECT / "sweeps/configs/quickstart.yaml") in server.given["entrypoint"]


def test_a_fault_in_the_file_or_the_options_submits_nothing(server: FakeServer, spec: Path) -> None:
    with pytest.raises(InputError, match="densty"):
        ray_job.launch([spec.name, "--set", "methods.ties.densty=1"])
    with pytest.raises(SystemExit) as end:
        ray_job.launch([spec.name, "--no-such-option"])
    assert end.value.code == 2
    assert not server.given


def test_without_a_cluster_it_is_one_line(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(InputError, match="no cluster takes the job") as error:
        ray_job.launch([spec.name])
    assert "\n" not in str(error.value)


def test_a_job_waits_for_nodes_and_is_sweeps_run(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(ray_job, "alive_nodes", lambda: ["10.0.0.1", "10.0.0.2"])
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(ray_job, "run_here", lambda words: ran.append(words))
    ray_job.launch(["a.yaml", "--wait-nodes", "2", "--resume"])
    assert ran == [("a.yaml", "--resume")]
    with pytest.raises(InputError, match=r"3 nodes wanted, 2 there after 0 s \(10.0.0.1, 10.0.0.2"):
        ray_job.launch(["a.yaml", "--wait-nodes", "3", "--wait", "0"])
    assert len(ran) == 1


def test_nodes_expected_are_those_of_the_cluster_file(tmp_path: Path) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    assert ray_job.expected_nodes(file) == 0
    kinds = {"head": {"max_workers": 0}, "gpu": {"min_workers": 2}, "cpu": {"min_workers": 1}}
    file.write_text(yaml.safe_dump({"available_node_types": kinds}))
    assert ray_job.expected_nodes(file) == 4


def test_sweeps_are_kept_where_they_outlive_a_jobs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("FUSION_SWEEPS_OUTPUTS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert outputs_dir() == Path("outputs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert outputs_dir() == Path("/home/me/fusion-sweeps/outputs")
    monkeypatch.setenv("FUSION_SWEEPS_OUTPUTS", "/shared/sweeps")
    assert outputs_dir() == Path("/shared/sweeps")


def test_the_cluster_file_is_accepted_by_ray_as_are_its_blocks_for_clouds() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (PROJECT / "cluster.yaml").read_text()
    local = yaml.safe_load(text)
    validate_config(prepare_config(local))
    commands = [*local["head_start_ray_commands"], *local["worker_start_ray_commands"]]
    assert "--dashboard-host=127.0.0.1" in commands[1]
    assert "RAY_AUTH_MODE=token" in str(local["setup_commands"])
    blocks = re.findall(r"^# (AWS|Google Cloud), .*\n(?:# .+\n)*#\n((?:# .+\n)+)", text, re.M)
    assert [name for name, _ in blocks] == ["AWS", "Google Cloud"]
    for _, block in blocks:
        cloud = local | yaml.safe_load(re.sub(r"(?m)^# ", "", block))
        validate_config(prepare_config(cloud))
        assert cloud["available_node_types"]["gpu"]["resources"]["GPU"] >= 1


def test_a_job_server_that_goes_away_for_good_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Gone:
        def get_job_info(self, job: str) -> Any:
            asked.append(job)
            raise RuntimeError("Request failed\nwith status code 500")

    monkeypatch.setattr(ray_job, "LOST", 0.5)
    with pytest.raises(InputError, match=r"^job j: its server has not answered for 0.5 s \(Req"):
        ray_job.info_of(Gone(), "j")
    assert len(asked) > 1
