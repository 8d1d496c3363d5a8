"""What decides on the command line: batches in an order of the seed."""

from __future__ import annotations

from argparse import Namespace

from secateurs.cli.calibration import read_rows, shuffled_batches
from secateurs.storage.model_folders import open_model


def test_batches_come_in_an_order_of_the_seed(folder, text):
    def lengths(seed):
        options = Namespace(
            images=None, text=text, data=None, model=folder, batch_size=1, max_length=16, seed=seed
        )
        _, batches = shuffled_batches(options, open_model(folder), read_rows(options))
        return [batch["input_ids"].tolist() for batch in batches]

    first, again, other = lengths(0), lengths(0), lengths(1)
    assert first == again != other
    assert sorted(first) == sorted(other)
