"""Files of what was learned, and states on the way: one changed bit, and a file is refused."""

import json

import pytest
import torch
from hypothesis import given

from actors.artifacts import gate_file
from actors.artifacts.coding_file import beta_of, dump_coding, load_coding
from actors.artifacts.in_model_state_file import dump_resident, load_resident
from actors.artifacts.learned_file import about_of, packed
from fusion.errors import InputError
from fusion.methods.learned.gate import Gate
from sweeps.analysis.core import evaluated_points
from sweeps.results.trial_state import State
from sweeps.storage.fetch import steps
from sweeps.trials import learn_coding, learn_in_model, select_ingredients
from tests.fuzz.damage import altered, mutated, only_input_errors

TASKS, GROUPS = ("a", "b"), ("x", "y", "z")
CODING = dump_coding(torch.arange(6.0).view(1, 2, 3), TASKS, GROUPS, 2.0)
IN_MODEL = dump_resident({"r": torch.arange(4.0)}, "wemoe", TASKS, 3)
GATE = Gate(4, 2, 1, depth=1, scale=0.3, softmax=False, base_weight=False)
MANIFEST = gate_file.Manifest("dawe", "e", "h", "p", 4, TASKS, "task", (), 1, 0.3, False, False, 5)
FILE = gate_file.dump(GATE, MANIFEST)


def router():
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2)
    return net, torch.optim.Adam(net.parameters())


def trained():
    net, optimizer = router()
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return learn_coding.checkpoint(net, optimizer, State(1, 0.5, curve=[{"step": 1, "loss": 0.5}]))


STATE = trained()


def about(data, kind):
    return about_of(data, kind, "x")


@given(altered(CODING))
def test_damaged_bytes_of_a_coding(data):
    with pytest.raises(InputError):
        load_coding(data, TASKS, GROUPS, "x")


@given(mutated(about(CODING, "coding")))
def test_any_note_of_a_coding(note):
    data = packed({"coding": torch.ones(1, 2, 3)}, "coding", note)
    with only_input_errors():
        load_coding(data, TASKS, GROUPS, "x")
    with only_input_errors():
        assert beta_of(data) > 0


@given(altered(IN_MODEL))
def test_damaged_bytes_of_parameters_in_shards(data):
    with pytest.raises(InputError):
        load_resident(data, "wemoe", TASKS)


@given(altered(FILE))
def test_damaged_bytes_of_a_gate(data):
    with pytest.raises(InputError):
        gate_file.load(data, "x")


@given(mutated(about(FILE, "gate")))
def test_any_note_of_a_gate(note):
    with only_input_errors():
        gate_file.load(packed(GATE.state_dict(), "gate", note), "x")


@given(altered(STATE))
def test_a_damaged_state_starts_over(data):
    net, optimizer = router()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    assert learn_coding.restore(data, net, optimizer) == State()
    assert all(torch.equal(start[name], value) for name, value in net.state_dict().items())
    assert optimizer.state_dict()["state"] == {}
    assert steps(data) == -1


def test_a_whole_state_is_taken_up():
    net, optimizer = router()
    assert learn_coding.restore(STATE, net, optimizer).step == 1
    assert steps(STATE) == 1


def test_a_state_of_another_router_starts_over():
    net = torch.nn.Linear(3, 2)
    start = net.weight.detach().clone()
    assert learn_coding.restore(STATE, net, torch.optim.Adam(net.parameters())) == State()
    assert torch.equal(net.weight, start)


@given(altered(learn_in_model.checkpoint(State(3), IN_MODEL)))
def test_a_damaged_state_in_shards_starts_over_or_is_the_same(data):
    state, kept = learn_in_model.restore(data, "wemoe", TASKS)
    assert kept in (None, IN_MODEL)
    assert kept is None or state.step == 3


@given(mutated({"a+b": {"score": 0.5, "correct": {"t": "3 4A=="}}}))
def test_scores_of_a_killed_selection(content):
    for each in select_ingredients.restored(json.dumps(content).encode()).values():
        assert isinstance(each["score"], float)


@given(mutated({"a*1": {"acc/mean": 0.5}}))
def test_points_of_a_killed_analysis(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "points.json"
    file.write_text(json.dumps(content))
    for metrics in evaluated_points.restored(file).values():
        assert all(isinstance(value, float) for value in metrics.values())
