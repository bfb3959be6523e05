"""Fields of tasks that sweep files of images did not have."""

import pytest

from actors.data.task import TaskSource, open_task
from actors.families.bert.family import BERT_FAMILY
from fusion.errors import InputError
from sweeps.spec.task import TaskSpec
from tests.tiny_text import write_texts


def test_an_objective_is_written_only_where_it_is_given():
    assert "objective" not in TaskSpec(dataset="d").model_dump()
    assert TaskSpec(dataset="d", objective="answers").model_dump()["objective"] == "answers"
    assert TaskSpec(dataset="d", objective="answers").source("t").objective == "answers"


def test_an_objective_is_refused_of_models_that_write_no_text(tmp_path):
    source = TaskSource("t", str(tmp_path), objective="answers")
    with pytest.raises(InputError, match=r"tasks\.t: objective: 'answers'; the pool's models read"):
        open_task(source, "image")
    write_texts(tmp_path, {"train": {"text": ["a", "b"], "label": [0, 1]}}, ["no", "yes"])
    with pytest.raises(InputError, match=r"tasks\.t\.objective: 'answers'; none allowed"):
        BERT_FAMILY.check_tasks(None, {"t": open_task(source, "text")})
