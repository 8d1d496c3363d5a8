"""Embeddings as sentence-transformers makes them, by a model in place of that of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateurs.errors import BackendError
from secateurs.measurement.similarity import Embed
from secateurs.storage.sentence_folders import class_of_folder


def open_embedder(folder: str | Path) -> Any:
    """The SentenceTransformer of a folder, stock or pruned, on the CPU.

    Raises BackendError for a folder of another class, or where the package is not installed.
    """
    kind = class_of_folder(folder)
    if kind != "SentenceTransformer":
        raise BackendError(f"expected a model of embeddings in {folder}, got a {kind}")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise BackendError(
            f"expected sentence-transformers, whose modules {folder} has behind its model, it is "
            "not installed: pip install sentence-transformers"
        ) from None
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def folder_embeddings(folder: str | Path, model: nn.Module) -> Embed:
    """Embeddings by `model` in place of the one of a folder: with its prompt, length, pooling, and
    all else behind it.

    Raises as `open_embedder`.
    """
    embedder = open_embedder(folder)
    embedder[0].model = model
    embedder.to(next(model.parameters()).device)

    def embed(texts: Sequence[str]) -> Tensor:
        made: Tensor = embedder.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return made

    return embed
