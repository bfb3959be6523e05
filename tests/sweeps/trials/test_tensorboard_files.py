"""Event files of trials."""

from sweeps.trials.tensorboard_files import EventFiles


def test_no_metric_is_written_twice(tmp_path):
    written = []

    class Writer:
        def __init__(self, *_args, **_options):
            pass

        def add_scalar(self, name, value, global_step):
            written.append((name, value, global_step))

        def flush(self):
            pass

    files = EventFiles()
    files._summary_writer_cls = Writer

    class Trial:
        local_path = str(tmp_path)

        def init_local_path(self):
            pass

    trial = Trial()
    entry = {"metrics": {"acc/x": 0.5}, "seed": 3, "trial_s": 1.0}
    result = {"acc/x": 0.5, "entry": entry, "training_iteration": 1, "config": {"seed": 3}}
    files.log_trial_result(1, trial, result)
    assert written == [("ray/tune/acc/x", 0.5, 1)]
    assert result["entry"] is entry
