"""Fine-tuning of a T5 on one task: all weights or LoRA, cross-entropy of the answer's tokens.

Axes: N rows, B batch, C classes, L tokens of the longest answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, load_config, read
from actors.checkpoints.write_adapter import write_adapter
from actors.data.protocol import Activations
from actors.data.task_rows import TaskData
from actors.data.text.opened_rows import OpenedRows, open_role, outputs_of_role
from actors.data.text.tokenizer import open_tokenizer
from actors.families.protocol import Judge, Training, unjudged
from actors.families.t5.architecture import LM_HEAD, is_linear
from actors.families.t5.inputs import ANSWERS, t5_inputs
from actors.families.t5.inspect import inspected
from actors.training.checkpoint import STOPS
from actors.training.fine_tuning import run
from actors.training.lora import Lora, add_lora
from actors.training.optimizer_loop import (
    Advance,
    Optimisation,
    adamw,
    constant,
    cosine,
    cpu_threads,
    linear,
    matrices_and_tables,
    quiet,
    silent,
)
from actors.training.precision import exact_products
from actors.training.random_numbers import seeded

OptimiserName: TypeAlias = Literal["adamw", "adafactor"]

TASK_TYPE = "SEQ_2_SEQ_LM"
"""PEFT's name of models such as T5."""

IGNORED = -100
"""Label of a token that is no part of an answer."""


def adafactor(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """Adafactor of Shazeer and Stern (2018, arXiv:1804.04235), rates relative to the weights."""
    return torch.optim.Adafactor(groups, lr=learning_rate)


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}
OPTIMISERS = {"adamw": adamw, "adafactor": adafactor}


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Hyper-parameters of `fine_tune`; `finetune` of a training file has these names and ranges.

    Defaults are those of the Flan-T5 experts of DAWE's released code: Adam at a constant 4e-5
    without weight decay, batches of 8. T5's authors used Adafactor at a constant 1e-3 (Raffel et
    al. 2020, arXiv:1910.10683): `optimiser: adafactor, learning_rate: 1.0e-3, batch_size: 128`.
    """

    epochs: Annotated[float, Interval(gt=0)] = 3.0
    """Passes over the rows; a fraction is rounded to whole steps."""
    batch_size: Annotated[int, Interval(ge=1)] = 8
    """Rows in a step, padded to the longest of them."""
    optimiser: OptimiserName = "adamw"
    """AdamW, or Adafactor, whose rate is relative to the size of the weights."""
    learning_rate: Annotated[float, Interval(gt=0)] = 4e-5
    """Highest learning rate."""
    weight_decay: Annotated[float, Interval(ge=0)] = 0.0
    """Weight decay, on matrices and tables."""
    warmup: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Fraction of the steps in which the learning rate rises; at least one step."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate afterwards."""
    clip_norm: Annotated[float, Interval(gt=0)] = 1.0
    """Largest global gradient norm."""
    ema: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the weights, written to `<out>-ema`; 0: none."""
    swa: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Fraction of the steps, at the end, whose mean weights are written to `<out>-swa`; 0: none."""
    lora: Mapping[str, Any] | None = None
    """Fields of `Lora`: low-rank factors are trained beside the frozen weights, and an adapter is
    written; null: all weights are trained. EMA and SWA are means of the factors."""
    seed: Annotated[int, Interval(ge=0)] = 0
    """Seed of the order of rows, of dropout and of LoRA's first factors."""


STEPWISE = ("learning_rate", "weight_decay", "clip_norm")


def fine_tune(
    start: Path,
    task: TaskData,
    out: Path,
    options: FineTuning,
    *,
    threads: int = 1,
    device: str = "cpu",
    head: Path | None = None,
    advance: Advance = silent,
    state: Path | None = None,
    stops: Sequence[float] = STOPS,
    judge: Judge = unjudged,
) -> Path:
    """Fine-tune a T5 on the answers of a task's fit rows, with teacher forcing, in float32.

    Dropout is that of the configuration; its masks depend on the seed and the step. Output and
    embeddings are tied where the start's files have one table, and apart where they have two.

    Args:
        start: folder of a T5.
        task: rows, prepared for the model.
        out: the expert's folder: `T5ForConditionalGeneration`, with the tokenizer beside it; with
            `lora` a PEFT adapter of the start.
        options: hyper-parameters.
        threads: CPU threads; fixes the order of sums, so part of what the bits depend on.
        device: device to train on.
        head: not used: the model scores answers itself.
        advance: called after each step.
        state: see `actors.training.fine_tuning.run`.
        stops: fractions of the steps.
        judge: see `Training.fine_tune`; its logits are log-likelihoods of the answers.

    Returns:
        `out`.
    """
    exact_products()
    about = inspected(str(start), start, load_config(start, "start", ("t5",)), "start")
    inputs = t5_inputs(about)
    rows = open_role(inputs, task.rows["fit"])
    labels, answers = rows.labels, answers_of(rows)
    with cpu_threads(threads), quiet():
        model = loaded(about).to(device)
        trained: Any = model
        write: Callable[[Any, Path], None] = partial(save, about=about)
        if options.lora is not None:
            lora = Lora(**options.lora)
            trained = add_lora(model, lora, options.seed)
            write = partial(write_adapter, options=lora, task_type=TASK_TYPE)

        def loss(step: int, at: Tensor) -> Tensor:
            model.train()
            with seeded(options.seed, step, "dropout", device):
                return answer_loss(model, rows.batch(at), answers[labels[at]])

        def seen(batch: Activations, wanted: Tensor = answers) -> Tensor:
            model.eval()
            with torch.no_grad():
                return likelihoods(model, batch, wanted)

        def look(share: float, seen: Callable[[Any], Tensor]) -> None:
            judge(share, lambda chosen: outputs_of_role(inputs, chosen, seen))

        return run(
            trained,
            loss,
            options,
            len(labels),
            out,
            write,
            seen,
            device=device,
            advance=advance,
            state=state,
            stops=stops,
            look=look,
            how=Optimisation(
                SCHEDULES[options.schedule], matrices_and_tables, OPTIMISERS[options.optimiser]
            ),
        )


def answers_of(rows: OpenedRows) -> Tensor:
    """int64 [C, L]: tokens of each class's answer, `IGNORED` after its end."""
    found: Tensor = rows.prepared.take(torch.zeros(1, dtype=torch.int64))[ANSWERS][0].long()
    return torch.where(found < 0, IGNORED, found)


def answer_loss(model: Any, batch: Activations, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens.

    Args:
        model: a T5 of `transformers`.
        batch: `ids` [B, n] and `mask` [B, n].
        labels: int64 [B, L], `IGNORED` after an answer's end.
    """
    device = model.device
    found: Tensor = model(
        input_ids=batch["ids"].to(device),
        attention_mask=batch["mask"].long().to(device),
        labels=labels.to(device),
    ).loss
    return found


def likelihoods(model: Any, batch: Activations, answers: Tensor) -> Tensor:
    """Σ log p of the tokens of every answer, [B, C], on the CPU.

    Args:
        model: a T5 of `transformers`.
        batch: `ids` [B, n] and `mask` [B, n].
        answers: int64 [C, L], `IGNORED` after an answer's end.
    """
    mask = batch["mask"].long().to(model.device)
    memory = model.encoder(input_ids=batch["ids"].to(model.device), attention_mask=mask)
    found = []
    for answer in answers.to(model.device):
        labels = answer[answer != IGNORED].expand(len(mask), -1).contiguous()
        z = model(encoder_outputs=memory, attention_mask=mask, labels=labels).logits
        logs = z.log_softmax(-1).gather(2, labels[..., None])[..., 0]
        found.append(logs.sum(1).cpu())
    return torch.stack(found, dim=1)


def loaded(start: Checkpoint) -> Any:
    """The model of `transformers` with a checkpoint's weights, in float32."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config.from_pretrained(start.folder)
    config.scale_decoder_outputs = start.fields["scaled"]
    with torch.random.fork_rng(devices=[]):  # the model draws weights of its own
        model = T5ForConditionalGeneration(config).float()
        if not start.fields["tied"]:  # transformers 5 ties the two whatever the files hold
            rows, width = model.shared.weight.shape
            model.lm_head = torch.nn.Linear(width, rows, bias=False)
    held = dict(read(start))
    for name, parameter in model.named_parameters():
        parameter.data.copy_(held[name])
    return model


def save(model: Any, folder: Path, about: Checkpoint) -> None:
    """Write a T5 whose configuration says what its files hold, and the tokenizer of its start."""
    with quiet():
        write_model(model, folder, tied=about.fields["tied"], scaled=about.fields["scaled"])
    open_tokenizer(about.folder, about.name).copy_to(folder)


def write_model(model: Any, folder: Path, *, tied: bool, scaled: bool) -> None:
    """Write a T5 of `transformers`, which says of all that they are tied, with its true ties."""
    model.save_pretrained(folder)
    file = folder / "config.json"
    ties = {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}
    config = {**json.loads(file.read_text()), **ties}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def adaptable(base: Checkpoint) -> tuple[str, ...]:
    """Last parts of the names of the linear layers in blocks: "q", "k", …; the output has none."""
    names = [name for name in base.tensors if is_linear(name) and name != LM_HEAD]
    return tuple(dict.fromkeys(name.split(".")[-2] for name in names))


def t5_training() -> Training:
    """Fine-tuning of all weights, or of LoRA factors; ingredients start from the base."""
    return Training(fine_tune, FineTuning, STEPWISE, adaptable=adaptable)
