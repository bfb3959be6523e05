"""Figures for Ray's metrics: what a process without Ray does, and what a node serves of a fleet."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from actors.cluster.actor_names import actor_name, tags_of
from actors.cluster.metrics import METRICS, PREFIX, WHERE, count, gauge, timed

DASHBOARD = json.loads((Path(__file__).parents[3] / "docs" / "grafana.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported(name: str) -> str:
    """The name that Ray's agents give to a metric for Prometheus."""
    return f"ray_{PREFIX}{name}" + ("_total" if METRICS[name].kind == "counter" else "")


def test_without_ray_nothing_happens_and_it_is_not_imported():
    code = """if True:
        import sys
        from actors.cluster.metrics import STATE, count, gauge, timed
        count("samples", 3, method="ties")
        gauge("lanes", 2)
        with timed("evaluate", "ties"):
            pass
        assert not STATE.made and not STATE.gauges and STATE.refresher is None
        assert "ray" not in sys.modules
        assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wrong_name_or_tag_is_a_bug_with_or_without_ray():
    with pytest.raises(KeyError, match="sample"):
        count("sample")
    with pytest.raises(KeyError, match=r"metric 'samples': tags \[\], not \['method'\]"):
        count("samples")
    with pytest.raises(KeyError, match=r"metric 'lanes': tags \['trial'\], not \[\]"):
        gauge("lanes", 1, trial="3f2a")


def test_a_call_that_raises_is_counted_as_failed(monkeypatch):
    counted = []
    monkeypatch.setattr(
        "actors.cluster.metrics.count", lambda *what, **tags: counted.append((what, tags))
    )
    with timed("evaluate", "ties"):
        pass
    with pytest.raises(ValueError, match="no"), timed("embed"):
        raise ValueError("no")
    assert [(what[0], *tags.values()) for what, tags in counted] == [
        ("calls", "evaluate", "ties", "done"),
        ("seconds", "evaluate", "ties"),
        ("calls", "embed", "", "failed"),
        ("seconds", "embed", ""),
    ]
    assert 0 <= counted[1][0][1] < 1


@pytest.mark.parametrize("sweep", ["ta8", "replica 1", "a/b.c"])
def test_names_give_their_tags_back(sweep):
    assert tags_of(actor_name(sweep, 12, 3)) == {"sweep": sweep, "replica": "12", "shard": "3"}
    assert tags_of(actor_name(sweep, 12)) == {"sweep": sweep, "replica": "12"}
    assert tags_of(actor_name(sweep, what="keeper")) == {"sweep": sweep}


def test_the_dashboard_asks_for_metrics_and_tags_that_there_are():
    named = set(re.findall(r"ray_fusion_sweeps_\w+", " ".join(QUERIES)))
    assert named == set(map(exported, METRICS))
    for query in QUERIES:
        for name, kind in {exported(name): row for name, row in METRICS.items()}.items():
            if name in query:
                asked = re.findall(r'(\w+)(?:=~|!=|=)"', query)
                grouped = ",".join(re.findall(r"by \(([^)]*)\)", query))
                asked += [tag.strip() for tag in grouped.split(",") if tag.strip()]
                assert set(asked) <= {*WHERE, *kind.tags}, query
                rated = "rate(" in query or "trials" in query
                assert rated == (kind.kind == "counter"), query


def test_the_dashboard_is_whole():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in panels)
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(places) == len(panels)
    assert {v["name"] for v in DASHBOARD["templating"]["list"]} == {"datasource", "sweep"}
    assert all(query.count("(") == query.count(")") for query in QUERIES)


def served() -> dict[str, list[dict[str, str]]]:
    """What this node's agent serves: name -> tags of each of its series."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=20).read().decode()
    found: dict[str, list[dict[str, str]]] = {}
    for name, tags in re.findall(r"^(\w+){(.*)} ", text, re.MULTILINE):
        found.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', tags)))
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_node_serves_every_figure_of_a_fleet(tiny_pool, tmp_path):
    from actors.cluster.metrics import label
    from actors.fleet.fleet import Fleet, FleetOptions
    from tests.actors.fleet.sharded import plan_of
    from tests.actors.laws.parts import make_parts, recipes

    parts = make_parts(tiny_pool.root, tmp_path)
    label(sweep="figures")
    with Fleet(*parts.args, plan_of(1, 2), FleetOptions(sweep="figures")) as fleet:
        fleet.ready(120)
        fleet.client.evaluate(recipes(parts.pool)["ties"], "select")
        fleet.client.evaluate(recipes(parts.pool)["ensemble"], "select")
        parts.train(fleet.client, steps=2)
        count("trials", method="ties", status="done")
        deadline = time.monotonic() + 60
        while set(map(exported, METRICS)) - set(found := served()):
            assert time.monotonic() < deadline, set(map(exported, METRICS)) - set(found)
            time.sleep(1)

    def tags(name: str, *keys: str) -> set[tuple[str, ...]]:
        ours = [each for each in found[exported(name)] if each["sweep"] == "figures"]
        return {tuple(each[key] for key in keys) for each in ours}

    assert tags("samples", "replica", "shard", "method") == {
        ("0", "", "ties"),
        ("0", "", "ensemble"),
    }
    assert tags("images", "use") == {("forward",), ("learn",)}
    assert tags("activations", "replica", "shard") == {("0", "0")}
    assert tags("cache", "cache", "shard") >= {("resident", "0"), ("resident", "1")}
    assert tags("cache", "cache", "found") >= {("embeddings", "miss")}
    assert tags("lanes", "replica") == {("",)}
    assert tags("trials", "method", "status") == {("ties", "done")}
    assert {name for name in re.findall(r"ray_\w+", " ".join(QUERIES)) if "gpu" not in name} - {
        "ray_node_gram_used"  # no GPU here
    } <= set(found)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_gauge_that_does_not_change_is_still_served_after_a_minute():
    import ray

    class Silent:
        def __init__(self) -> None:
            gauge("lanes", 7)

        def pid(self) -> int:
            return 0

    actor = ray.remote(Silent).options(num_cpus=0, name=actor_name("silent")).remote()
    ray.get(actor.pid.remote())
    time.sleep(45)
    assert "silent" in {each["sweep"] for each in served()[exported("lanes")]}
    ray.kill(actor)
    time.sleep(45)
    assert "silent" not in {each["sweep"] for each in served().get(exported("lanes"), [])}
