"""Pairs of sentences on the command line: how well a model's embeddings rank them."""

from __future__ import annotations

import argparse
from typing import Any

QUALITY = "spearman"


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """Add the pairs that judge embeddings."""
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        help="judge embeddings by these pairs: Spearman's correlation of cosines with scores; JSON "
        "lines with sentence1, sentence2 and score or label, or a tab-separated file with these "
        "names in its first line, as STS-B's",
    )


def judged_by_pairs(pairs: Any, model: Any, reading: argparse.Namespace, *folders: str) -> float:
    """How well `model` ranks pairs of sentences.

    Args:
        folders: the first of them that is one of sentence-transformers says how embeddings are
            made; without one they are mean states, of what the tokenizer in `reading.model` reads.
    """
    from secateurs.cli.calibration import tokenizer_of
    from secateurs.integrations.sentence_embeddings import folder_embeddings
    from secateurs.measurement.similarity import mean_embeddings, rank_correlation
    from secateurs.storage.sentence_folders import is_sentence_folder

    told = next(filter(is_sentence_folder, folders), None)
    if told is not None:
        return rank_correlation(folder_embeddings(told, model), pairs)
    tokenizer = tokenizer_of(reading, model)
    return rank_correlation(mean_embeddings(model, tokenizer, reading.max_length), pairs)
