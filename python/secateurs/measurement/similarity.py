"""Quality of embeddings: whether sentences that people find alike lie close to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs.data.batches import run, to_device
from secateurs.data.metrics import spearman
from secateurs.data.sentence_pairs import SentencePairs
from secateurs.data.text import check_known, tokenized
from secateurs.errors import DataError
from secateurs.measurement.quality import pooled

Embed = Callable[[Sequence[str]], Tensor]
"""Makes embeddings `[N, D]` of N texts."""

_BATCH = 32


def rank_correlation(embed: Embed, pairs: SentencePairs) -> float:
    """Spearman's correlation of the cosines of both sentences' embeddings with the scores.

    Raises DataError for embeddings that are not finite.
    """
    first, second = (embed(texts).double() for texts in (pairs.first, pairs.second))
    cosines = F.cosine_similarity(first, second)
    if not bool(torch.isfinite(cosines).all()):
        raise DataError("expected finite embeddings of all sentences, got NaN or infinity")
    return spearman(cosines.cpu().numpy(), np.array(pairs.scores))


def mean_embeddings(model: nn.Module, tokenizer: Any, max_length: int) -> Embed:
    """Embeddings as mean states of real tokens, of a model without a head.

    What is returned raises DataError for a model that gives no states.
    """

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts, known = [], []
        for start in range(0, len(texts), _BATCH):
            chosen = [texts[i] for i in order[start : start + _BATCH]]
            together = {"padding": True, "return_tensors": "pt"}
            batch = to_device(
                dict(tokenized(tokenizer, chosen, None, max_length, **together)), model
            )
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            known.append(batch["input_ids"][real].tolist())
            output = run(model, batch)
            states = getattr(output, "last_hidden_state", None)
            if not isinstance(states, Tensor):
                raise DataError(
                    "expected a model without a head, whose mean state is an embedding, got "
                    f"{type(model).__name__}"
                )
            parts.append(pooled(states, batch))
        check_known(tokenizer, known)
        return torch.cat(parts)[torch.tensor(order).argsort()]

    return embed
