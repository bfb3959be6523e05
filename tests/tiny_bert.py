"""Tiny BERT and RoBERTa classifiers as `transformers` writes them, their tokenizers, and texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

WIDTH, LAYERS, LONGEST = 16, 2, 20
WORDS = ("good", "bad", "fine", "poor", "film", "play", "was", "not", "the", "a", "very", "##ly")
KINDS = ("bert", "roberta")


def write_tokenizer(folder: Path, kind: str, words: tuple[str, ...] = WORDS) -> int:
    """A tokenizer of words (WordPiece), or of bytes; the size of its vocabulary."""
    from transformers import BertTokenizer, RobertaTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if kind == "bert":
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    else:
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *bytes_to_unicode().values()]
    vocab = {token: at for at, token in enumerate(tokens)}
    if kind == "bert":
        BertTokenizer(vocab=vocab, model_max_length=LONGEST).save_pretrained(folder)
    else:
        RobertaTokenizer(vocab=vocab, merges=[], model_max_length=LONGEST).save_pretrained(folder)
    return len(vocab)


@dataclass(frozen=True)
class Models:
    """Writes models of one kind, all near one that is drawn."""

    kind: str
    tokenizer: Path
    vocabulary: int

    def config(self, classes: int, **fields: Any) -> Any:
        from transformers import BertConfig, RobertaConfig

        sizes = {
            "vocab_size": self.vocabulary, "hidden_size": WIDTH, "intermediate_size": 24,
            "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_labels": classes,
            "max_position_embeddings": LONGEST + (2 if self.kind == "roberta" else 0),
        }  # fmt: skip
        return {"bert": BertConfig, "roberta": RobertaConfig}[self.kind](**{**sizes, **fields})

    def write(
        self, folder: Path, seed: int = 0, classes: int = 3, *, encoder: bool = False, **fields: Any
    ) -> Path:
        """A classifier (or the encoder alone), with its tokenizer; `seed` moves it from seed 0."""
        import transformers

        name = {"bert": "Bert", "roberta": "Roberta"}[self.kind]
        made = getattr(transformers, name + ("Model" if encoder else "ForSequenceClassification"))
        model = made(self.config(classes, **fields))
        for at, (key, value) in enumerate(model.state_dict().items()):
            first = torch.Generator().manual_seed(at)
            step = torch.Generator().manual_seed(1000 * seed + at)
            value.copy_(0.3 * torch.randn(value.shape, generator=first))
            value += float("LayerNorm.weight" in key)
            value += 0.1 * bool(seed) * torch.randn(value.shape, generator=step)
        model.save_pretrained(folder)
        for file in self.tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder


def make_models(root: Path) -> dict[str, Models]:
    """Models of both kinds, whose tokenizers are written under `root`."""
    found = {}
    for kind in KINDS:
        (root / kind).mkdir()
        found[kind] = Models(kind, root / kind, write_tokenizer(root / kind, kind))
    return found


def write_texts(folder: Path, classes: tuple[str, ...], seed: int, *, pairs: bool = False) -> Path:
    """A data set of sentences; each class has a word of its own at a place that is drawn."""
    draw = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    for split, count in (("train", 36), ("test", 24)):
        labels, rows = [at % len(classes) for at in range(count)], []
        for label in labels:
            size = int(torch.randint(2, 6, (1,), generator=draw))
            words = [WORDS[4 + int(torch.randint(7, (1,), generator=draw))] for _ in range(size)]
            words.insert(int(torch.randint(size, (1,), generator=draw)), WORDS[label])
            rows.append(" ".join(words))
        table = {"text": rows, "label": labels}
        if pairs:
            table["second"] = rows[1:] + rows[:1]
        pq.write_table(pa.table(table), folder / f"{split}.parquet")
    (folder / "meta.json").write_text(json.dumps({"classnames": list(classes)}))
    return folder
