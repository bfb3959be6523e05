"""Costs of segments, by hand."""

from actors.cluster.segment_costs import MERGED, TENSOR, Effort, segment_cost


def test_a_static_model_costs_its_rows_and_its_small_operations():
    effort = Effort(work=1000.0, tensors=3, elements=10.0**9)
    assert segment_cost(effort, rows=4, experts=8, training=False) == 4000 + TENSOR
    assert segment_cost(effort, rows=4, experts=80, training=False) == 4000 + TENSOR


def test_training_passes_thrice_and_reads_each_task_vector_thrice():
    effort = Effort(work=1000.0, tensors=2, elements=50.0)
    expected = 3 * 4 * 1000 + 3 * (8 + 2) * 50 * MERGED + 2 * TENSOR
    assert segment_cost(effort, rows=4, experts=8, training=True) == expected


def test_factors_are_counted_instead_of_dense_task_vectors():
    effort = Effort(work=1000.0, tensors=0, elements=10.0**9, factors=70.0)
    assert segment_cost(effort, 4, 8, training=True) == 3 * 4 * 1000 + 3 * 70 * MERGED


def test_many_rows_are_work_and_few_are_merging():
    encoder = Effort(work=1e6, tensors=9, elements=1e4)
    decoder = Effort(work=1e5, tensors=14, elements=2e4)
    ratios = [
        segment_cost(encoder, rows, 8, training=True)
        / segment_cost(decoder, rows, 8, training=True)
        for rows in (1, 100, 10**6)
    ]
    assert ratios == sorted(ratios)
    assert ratios[0] < 1
    assert abs(ratios[-1] - 10) < 0.1
