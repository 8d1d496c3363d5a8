"""How embeddings rank pairs of sentences, against sums and ranks done by hand."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import tiny_model
from support.word_folders import WORDS, saved
from torch.nn import functional as F
from transformers import AutoTokenizer

from secateurs.data.sentence_pairs import SentencePairs
from secateurs.errors import DataError
from secateurs.measurement.similarity import mean_embeddings, rank_correlation

TEXTS = [" ".join(WORDS[i : i + n]) for i, n in ((0, 9), (2, 1), (5, 4))]


@pytest.fixture
def tokenizer(tmp_path):
    return AutoTokenizer.from_pretrained(saved(tmp_path, tiny_model("bert"), pad_token="[PAD]"))


def test_cosines_are_ranked_against_scores():
    angles = {"east": 0.0, "near": 0.3, "north": 1.5, "west": 3.1}

    def embed(texts):
        turned = torch.tensor([angles[text] for text in texts])
        # Lengths, which a cosine does not see, would rank otherwise.
        return torch.stack([turned.cos(), turned.sin()], 1) * (1 + turned[:, None])

    pairs = SentencePairs(["east"] * 4, ["near", "north", "west", "east"], [2.0, 4.0, 1.0, 5.0])
    # Ranks of cosines 3, 2, 1, 4 and of scores 2, 3, 1, 4: 1 - 6 * 2 / (4 * 15).
    assert rank_correlation(embed, pairs) == pytest.approx(0.8)
    with pytest.raises(DataError, match="finite embeddings"):
        rank_correlation(lambda texts: embed(texts) / 0 * 0, pairs)


def test_means_of_real_tokens_come_in_the_order_of_the_texts(tokenizer, monkeypatch):
    monkeypatch.setattr("secateurs.measurement.similarity._BATCH", 2)
    model = tiny_model("bert")
    got = mean_embeddings(model, tokenizer, 6)(TEXTS)
    with torch.no_grad():
        states = [model(torch.tensor([tokenizer(t)["input_ids"][:6]]))[0][0] for t in TEXTS]
    wanted = torch.stack([each.double().mean(0) for each in states])
    assert got.shape == wanted.shape
    assert F.cosine_similarity(got, wanted).min() > 1 - 1e-6
    assert torch.allclose(got, wanted, atol=1e-5)


def test_what_makes_no_embeddings_is_refused(tokenizer):
    headed = mean_embeddings(tiny_model("roberta"), tokenizer, 6)
    with pytest.raises(DataError, match=r"without a head.*got RobertaForSequenceClassification"):
        headed(TEXTS)
    with pytest.raises(DataError, match="unknown tokens"):
        mean_embeddings(tiny_model("bert"), tokenizer, 6)(["fremde Worte hier", "alte Haeuser"])
