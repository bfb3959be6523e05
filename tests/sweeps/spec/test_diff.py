"""What changed between two specs, in lines; what may change under a sweep."""

import pytest

from fusion.errors import InputError
from sweeps.results.ledger import Entry
from sweeps.results.rows.winners import counted
from sweeps.spec.candidates import trial_counts
from sweeps.spec.diff import changes, check_extends, lines
from sweeps.spec.sweep import dump, validate
from sweeps.spec.trial_key import Context, trial_key

METHODS = {
    "ties": {"density": {"grid": [0.1, 0.2]}, "scale": 0.3},
    "task_arithmetic": {"scale": {"uniform": [0.1, 0.5]}, "trials": 4},
}


def spec(**changed):
    content = {
        "name": "s",
        "pool": {"base": "b", "experts": {"cars": "c", "svhn": "v"}},
        "methods": METHODS,
    }
    return validate(content | changed, "s.yaml")


def said(old, new) -> list[str]:
    return [str(change) for change in changes(old, new)]


def test_a_line_names_field_old_and_new():
    other = METHODS | {"ties": {"density": {"grid": [0.1, 0.2, 0.5]}, "scale": 0.3}}
    assert said(spec(), spec(methods=other)) == [
        "methods.ties.density.grid: [0.1, 0.2] -> [0.1, 0.2, 0.5]"
    ]
    assert said(spec(), spec(methods=METHODS | {"wise_ft": {"alpha": 0.5, "expert": "cars"}})) == [
        "methods.wise_ft: added {'alpha': 0.5, 'expert': 'cars'}"
    ]
    assert said(spec(), spec(methods={"ties": METHODS["ties"]}, seed=3)) == [
        "methods.task_arithmetic: removed (was {'scale': {'uniform': [0.1, 0.5]}, 'trials': 4})",
        "seed: 0 -> 3",
    ]
    assert said(spec(), spec(placement={"dtype": "float16"})) == ["dtype: 'float32' -> 'float16'"]


def test_what_decides_no_numbers_is_no_change():
    other = spec(name="t", placement={"replicas": 2}, mlflow={"experiment": "e"})
    assert said(spec(), other) == []


def test_lines_after_the_tenth_are_counted():
    experts = {f"t{i}": "x" for i in range(9)}
    found = changes(spec(), spec(pool={"base": "b", "experts": experts}))
    shown = lines(found)
    assert len(shown) == 11
    assert shown[-1] == f"and {len(found) - 10} more"


def extends(new, *, extend: bool):
    check_extends("out/s", dump(spec()), dump(new), extend=extend)


def test_methods_search_spaces_and_metric_extend():
    wider = spec(methods={"ties": {"density": 0.5}, "simple_average": {}}, metric="nll/mean")
    extends(wider, extend=True)
    with pytest.raises(InputError) as refused:
        extends(wider, extend=False)
    first, *changed, last = refused.value.lines
    assert first == "out/s: was started from another spec:"
    assert "metric: 'acc/mean' -> 'nll/mean'" in changed
    assert last.startswith("--extend goes on with it and keeps finished trials")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"seed": 1}, "seed"),
        ({"splits": {"val_fraction": 0.2}}, "splits"),
        ({"pool": {"base": "other", "experts": {"cars": "c", "svhn": "v"}}}, "pool"),
        ({"tasks": {"cars": {"dataset": "d"}}}, "tasks"),
        ({"placement": {"dtype": "bfloat16"}}, "dtype"),
    ],
)
def test_what_every_number_depends_on_does_not(change, part):
    with pytest.raises(InputError) as refused:
        extends(spec(**change), extend=True)
    assert part in refused.value.lines[1]
    assert part in refused.value.lines[-1].partition(":")[0]
    assert refused.value.lines[-1].endswith("give another name, or use --fresh")


def test_a_spec_that_cannot_be_read_any_more():
    with pytest.raises(InputError, match="another spec, which cannot be read any more; give"):
        check_extends("out/s", "name: s\nmethods: {gone: {}}\n", dump(spec()), extend=True)


def test_standing_counts_trials_that_the_spec_still_means():
    def key(method, **params):
        return trial_key(method, params, "c")

    done = {
        key("ties", density=0.1, scale=0.3): "ties",
        key("ties", density=0.7, scale=0.3): "ties",  # of a spec it had before
        key("pretrained"): "pretrained",
        key("wise_ft", alpha=0.5, expert="cars"): "wise_ft",  # likewise
    }
    # 2 references, 2 points of ties, 4 samples of task_arithmetic.
    assert trial_counts(spec(), "c", done) == (2, 8)
    guided = spec(methods={"task_arithmetic": METHODS["task_arithmetic"] | {"searcher": "tpe"}})
    tried = {str(number): "task_arithmetic" for number in range(5)}
    assert trial_counts(guided, "c", dict(list(tried.items())[:3])) == (3, 6)
    assert trial_counts(guided, "c", tried) == (4, 6)


def test_samples_that_repeat_count_once():
    few = {"ties": {"density": {"choice": [0.1, 0.2]}, "trials": 2}}
    repeated = [
        seed for seed in range(8) if trial_counts(spec(methods=few, seed=seed), "c", {})[1] == 3
    ]
    assert repeated  # some seeds draw one value twice
    assert len(repeated) < 8


def test_a_key_depends_on_the_files_that_its_trial_names():
    gate = {"extractor": "resnet", "squash": False, "gate": None}
    bare = Context("c")
    with_one = Context("c", {("resnet", False): "f1"})
    assert (
        trial_key("ties", {}, bare) == trial_key("ties", {}, with_one) == trial_key("ties", {}, "c")
    )
    known, more = with_one.of(gate), Context("c", {("resnet", False): "f1", ("vit", True): "f2"})
    assert more.of(gate) == known != bare.of(gate)
    assert Context("c", {("resnet", False): "f3"}).of(gate) != known
    given = gate | {"gate": "g.safetensors"}
    assert Context("c", {}, {"g.safetensors": "h1"}).of(given) != bare.of(given)


def test_the_comparison_counts_methods_that_the_sweep_has():
    def entry(method, **params):
        return Entry(method, method, "static", params, "done", "select")

    entries = [entry(name) for name in ("ties", "wise_ft", "experts", "ensemble", "gone")]
    assert [e.method for e in counted(entries, spec())] == ["ties", "experts", "ensemble"]
