"""Code that scores texts with an exported BERT or RoBERTa: its classifier, or a task's head."""

from __future__ import annotations

from actors.checkpoints.checkpoint import Checkpoint
from actors.families.bert.architecture import DENSE
from actors.families.usage import Usage

TOKENS = (
    'first, *others = (batch[column] for column in task["columns"])',
    'pairs = [" ".join(each) for each in zip(*others)] or None',
    'inputs = tokenizer(first, pairs, truncation=True, max_length=task["max_tokens"],'
    ' padding=True, return_tensors="pt")',
)


def bert_usage(base: Checkpoint) -> Usage:
    """Scores are the logits of a fused classifier, or those of the task's head."""
    whole = bool(base.fields["labels"])
    name = "AutoModelForSequenceClassification" if whole else "AutoModel"
    pooled = f"{DENSE[base.fields['model_type']]}.weight" in base.tensors
    scores = ("scores = model(**inputs).logits.float()",)
    if not whole:
        output = "pooler_output" if pooled else "last_hidden_state[:, 0]"
        dense = 'z = torch.tanh(z @ head["dense.weight"].T + head["dense.bias"])'
        scores = (
            f"z = model(**inputs).{output}.float()",
            *(() if pooled else (dense,)),
            'scores = z @ head["head"].T + head["bias"]',
        )
    return Usage(
        "text-classification",
        (f"from transformers import AutoTokenizer, {name}",),
        (
            f'model = {name}.from_pretrained(".", dtype=dtype).eval()',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
        ),
        (*TOKENS, *scores),
        heads=not whole,
    )
