"""Faults of `data`."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
    *faults_in(
        "python/secateurs/data/text.py",
        (r"(?<!Mrs\.)", "", "data/test_text.py -k abbreviations"),
        ('batch["labels"] = torch.tensor([e["label"] for e in part])', "pass",
         "data/test_text.py -k labels_with_their_text"),
        ('len(e["text"]) + len(e.get("text_pair", ""))', "0",
         "data/test_text.py -k similar_lengths"),
    ),
    *faults_in(
        "python/secateurs/data/glue.py",
        ("2 * right / either", "right / either", "data/test_glue.py -k by_hand"),
        ("(2 * last - counts + 1) / 2", "(2 * last - counts) / 2 + counts",
         "data/test_glue.py -k rank_correlation"),
    ),
)  # fmt: skip
