"""Input errors: exceptions shown to the user as one line without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

CONTROLS = {
    number: repr(chr(number))[1:-1] for number in (*range(32), *range(127, 160), 0x2028, 0x2029)
}
"""Control characters and line breaks, by number, as Python escapes them."""


class InputError(ValueError):
    """Wrong input: one line naming the file, the field, the value and what is allowed.

    Control characters in the message are escaped: names and values of a user's file may have them.

    >>> str(InputError("a.yaml: no field 'x\\ny'"))
    "a.yaml: no field 'x\\\\ny'"
    """

    def __init__(self, *said: str) -> None:
        """`said`: the message, a line for each fault."""
        super().__init__(*(line.translate(CONTROLS) for line in said))

    def __str__(self) -> str:
        """The message."""
        return "\n".join(self.args)


class Vanished(InputError):
    """A member of the pool whose file is missing or has changed since it was opened.

    A greedy soup leaves such an ingredient out and records it (`sweeps.trials.select_ingredients`).
    Everywhere else it is an `InputError` like any other.
    """

    def __init__(self, member: str, said: str) -> None:
        """`member`: its name in the pool; `said`: the message, with member, file and reason."""
        super().__init__(said)
        self.member = member

    def __reduce__(self) -> tuple[type[Vanished], tuple[str, str]]:
        """Pickle the member with the message: errors cross process boundaries."""
        return type(self), (self.member, str(self))


def one_line(error: BaseException) -> str:
    """Message of an exception without line breaks; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


ALIASES: Mapping[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "rate": ("learning_rate",),
    "lambda": ("scale",),
    "lam": ("scale",),
    "coefficient": ("scale", "alpha"),
    "scaling": ("scale",),
    "scaling_factor": ("scale",),
    "epoch": ("epochs", "steps"),
    "num_epochs": ("epochs", "steps"),
    "num_train_epochs": ("epochs", "steps"),
    "iterations": ("steps", "epochs"),
    "max_steps": ("steps", "epochs"),
    "bs": ("batch_size",),
    "batch": ("batch_size",),
    "wd": ("weight_decay",),
    "decay": ("weight_decay",),
    "warmup_ratio": ("warmup",),
    "warmup_steps": ("warmup",),
    "max_grad_norm": ("clip_norm",),
    "topk": ("density",),
    "top_k": ("density",),
    "k": ("density",),
    "temp": ("temperature",),
    "model": ("base",),
    "base_model": ("base",),
    "models": ("experts", "pool"),
    "data": ("dataset",),
    "path": ("dataset",),
    "classes": ("classnames",),
    "class_names": ("classnames",),
    "labels": ("label",),
    "prompt": ("template", "templates"),
    "prompts": ("templates", "template"),
    "verbalizer": ("targets",),
    "verbalisers": ("targets",),
    "verbalizers": ("targets",),
    "num_samples": ("trials",),
    "n_trials": ("trials",),
    "search_alg": ("searcher",),
    "sampler": ("searcher",),
}
"""Other usual names of fields -> the names here, of which the first valid one is meant."""


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """Error text for an unknown name, with the valid name that is meant and all valid names.

    That is the one that has this name elsewhere (`ALIASES`), else the most similar one.

    >>> unknown("method", "tys", ["ties", "dare"])
    "unknown method 'tys'; did you mean 'ties'? (valid: dare, ties)"
    >>> unknown("parameter", "lr", ["learning_rate", "layer"])
    "unknown parameter 'lr'; did you mean 'learning_rate'? (valid: layer, learning_rate)"
    """
    names = sorted(valid)
    usual = [each for each in ALIASES.get(name.lower(), ()) if each in names]
    near = usual or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r};{hint} (valid: {', '.join(names) or 'none'})"


@contextmanager
def reading(where: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Context manager for reading a user's file: turns any exception into an `InputError`.

    Args:
        where: task or expert, and file; the message starts with it.
        passing: exceptions that are not converted, in addition to `InputError`.

    Raises:
        InputError: `where`, then the reason in one line; the cause is kept for `--debug`.
    """
    try:
        yield
    except Exception as error:  # a reader's libraries raise what they like on a damaged file
        if isinstance(error, (InputError, *passing)):
            raise
        # The operating system's message repeats the path, which `where` names already.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        raise InputError(f"{where}: {reason or one_line(error)[:300]}") from error
