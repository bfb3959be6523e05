"""What errors are to those who catch them."""

from __future__ import annotations

import pickle

from fusion.errors import InputError, Vanished


def test_a_vanished_member_is_named_also_in_another_process() -> None:
    found = pickle.loads(pickle.dumps(Vanished("run_3", "expert 'run_3': x: no such file")))
    assert isinstance(found, InputError)
    assert (found.member, str(found)) == ("run_3", "expert 'run_3': x: no such file")


def test_a_message_is_one_line_whatever_names_hold():
    error = InputError("a.yaml: 'x\n\x1b[2J\u2028\x85': unknown")
    assert str(error) == r"a.yaml: 'x\n\x1b[2J\u2028\x85': unknown"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
