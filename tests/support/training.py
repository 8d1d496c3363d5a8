"""Training in tests: a tiny classifier, labelled batches, the plainest loop around a session."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from secateurs import METHODS, SparsityPlan
from secateurs.pruning import Needs
from secateurs.pruning.session import Session
from secateurs.training.trainer import PruningTrainer
from support.tiny_models import tiny_model

# Every method that trains, with each kind of budget it serves.
TRAINED = {
    "dsp": ["heads=0.5"],
    "voita": ["heads=0.5"],
    "snip_identity": ["heads=0.4", "modules=0.5", "heads=0.25,modules=0.34"],
    "admm_pattern": ["patterns=0.5,vector=16", "patterns=0.5,pattern=2:4",
                     "patterns=0.25,pattern=library"],
    "dcil": ["weights=0.7", "blocks=0.5,block=32x16", "patterns=0.75,vector=16"],
    "mlpruning": ["heads=0.25,neurons=0.5,blocks=0.7,block=16", "heads=0.5,neurons=0.4",
                  "blocks=0.5,block=32x16"],
    "gradual_magnitude": ["weights=0.7", "blocks=0.5,block=32x16", "patterns=0.75,vector=16"],
    "platon": ["weights=0.7", "blocks=0.5,block=32x16", "patterns=0.75,vector=16"],
    "sensi_bert": ["heads=0.5", "heads=0.25,neurons=0.6"],
    "seven": ["weights=0.7", "blocks=0.5,block=32x16", "patterns=0.75,vector=16"],
}  # fmt: skip
assert TRAINED.keys() == {n for n, row in METHODS.items() if Needs.TRAINING in row.needs}
CASES = [(method, budget) for method, budgets in TRAINED.items() for budget in budgets]


def classifier() -> nn.Module:
    return tiny_model("roberta")


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.set_attn_implementation("eager")
    return model


def labelled(count: int = 4, seed: int = 1) -> list[dict[str, Tensor]]:
    """Batches of four padded sequences; a sequence's label is whether it begins with a high id."""
    random = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(3, 100, (4, 9), generator=random)
        mask = torch.ones_like(ids)
        mask[0, 6:] = 0
        batches.append(
            {"input_ids": ids, "attention_mask": mask, "labels": (ids[:, 0] > 50).long()}
        )
    return batches


def optimizer(session: Session, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW(session.parameter_groups(lr=lr), weight_decay=0.0)


def steps(
    session: Session,
    adam: torch.optim.Optimizer,
    batches: list[Mapping[str, Tensor]],
    count: int,
    start: int = 0,
) -> Iterator[int]:
    """Train, yielding the number of each step once it is done."""
    for i in range(start, start + count):
        session.model.train()
        loss = session.model(**batches[i % len(batches)]).loss + session.penalty()
        if loss.requires_grad:
            loss.backward()
        session.after_backward()
        adam.step()
        session.after_step()
        adam.zero_grad()
        yield i


def trained(session: Session, count: int, lr: float = 1e-3) -> None:
    for _ in steps(session, optimizer(session, lr), labelled(), count):
        pass


def interrupted(
    method: str, budget: str, count: int, stops: tuple[int, ...], path: Path, **options: Any
) -> tuple[SparsityPlan, dict[str, Tensor]]:
    """The plan and the weights of a training of `count` steps that ends at each of `stops`, and
    goes on from the file `path` in objects made anew."""
    torch.manual_seed(3)
    model, carried = classifier(), None
    for begin, end in zip((0, *stops), (*stops, count), strict=True):
        with Session(model, method, budget=budget, steps=count, **options) as session:
            adam = optimizer(session)
            if carried:
                session.load_state_dict(carried["session"])
                adam.load_state_dict(carried["adam"])
                model.load_state_dict(carried["model"])
                torch.set_rng_state(carried["rng"])
            for _ in steps(session, adam, labelled(), end - begin, begin):
                pass
            torch.save(
                {"session": session.state_dict(), "adam": adam.state_dict(),
                 "model": model.state_dict(), "rng": torch.get_rng_state()},
                path,
            )  # fmt: skip
            if end == count:
                return session.current_plan(), model.state_dict()
        carried = torch.load(path, weights_only=True)
        model = classifier()
    raise AssertionError("the last stop is the end")


STEPS = 9


def examples(count: int = 24) -> list[dict[str, Tensor]]:
    return [
        {name: value[i] for name, value in batch.items()}
        for batch in labelled(count // 4)
        for i in range(4)
    ]


def trainer(model, folder, session=None, *, teacher=None, distillation=None, **changes):
    settings = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4,
        "learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "logging_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip
    return PruningTrainer(
        model,
        TrainingArguments(**{**settings, **changes}),
        train_dataset=examples(),
        session=session,
        teacher=teacher,
        distillation=distillation,
    )


WORDS = "the old house stood by a river and nobody came there in winter".split()  # noqa: SIM905


def write(path: Path, rows: list[dict]) -> None:
    """JSON lines, gzipped where the name says so."""
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def sentences(count: int) -> list[dict]:
    """Label 1 where the sentence starts in the second half of the words."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        words = random.permutation(WORDS)[: 4 + i % 5].tolist()
        rows.append(
            {"sentence": " ".join(words), "label": int(WORDS.index(words[0]) > 6), "idx": i}
        )
    return rows


def glue_folder(path: Path) -> Path:
    """The task sst2 in 40 and 20 sentences."""
    rows = sentences(60)
    write(path / "sst2" / "train.jsonl.gz", rows[:40])
    write(path / "sst2" / "validation.jsonl", rows[40:])
    return path


def dense_folder(path: Path) -> Path:
    """A tiny BERT without a head, and a tokenizer of its words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny_model("bert").save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(path)
    return path
