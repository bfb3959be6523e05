"""Code that ranks a task's answers with an exported T5."""

from __future__ import annotations

from actors.families.usage import Usage

T5_USAGE = Usage(
    "text2text-generation",
    ("from transformers import AutoTokenizer, T5ForConditionalGeneration",),
    (
        'model = T5ForConditionalGeneration.from_pretrained(".", dtype=dtype).eval()',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ),
    (
        'texts = zip(*(batch[column] for column in task["columns"]))',
        'texts = [task["template"].format(**dict(zip(task["columns"], text))) for text in texts]',
        'inputs = tokenizer(texts, truncation=True, max_length=task["max_tokens"], padding=True,'
        ' return_tensors="pt")',
        "ids, mask = inputs.input_ids, inputs.attention_mask",
        "memory, scores = model.encoder(ids, mask), []",
        "for answer in answers:  # the sum of its tokens' log-probabilities",
        "    answer = answer.repeat(len(ids), 1)",
        "    z = model(encoder_outputs=memory, attention_mask=mask, labels=answer).logits.float()",
        "    loss = torch.nn.functional.cross_entropy(z.mT, answer, reduction='none')",
        "    scores.append(-loss.sum(1))",
        "scores = torch.stack(scores, 1)",
    ),
    preparing=(
        'answers = tokenizer(task["targets"], padding=True, return_tensors="pt").input_ids',
        "answers = answers.masked_fill(answers == tokenizer.pad_token_id, -100)",
    ),
)
