"""The file that stock transformers opens in a saved folder while secateurs is not imported: no
weights, but an error that says what to do. With us imported, our quantiser puts it aside."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from secateurs.files import written_whole

NAME = "needs-secateurs.safetensors"
SENTENCE = (
    "this model opens with secateurs: pip install secateurs, and import secateurs before loading it"
)


def write_sentinel(directory: Path) -> None:
    """Write the file. Every reader of safetensors refuses its header, and quotes the type in it
    that does not exist."""
    header = json.dumps({NAME: {"dtype": SENTENCE, "shape": [0], "data_offsets": [0, 0]}}).encode()
    with written_whole(directory / NAME) as scratch:
        scratch.write_bytes(struct.pack("<Q", len(header)) + header)
