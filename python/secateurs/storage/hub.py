"""Saved folders on a hub: what is uploaded is the folder that `save` writes, with its card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from secateurs.storage.checkpoint import WEIGHTS, save
from secateurs.storage.model_card import NAME as CARD
from secateurs.storage.model_card import is_ours, write_card


def push(
    model: nn.Module,
    repo_id: str,
    *,
    token: bool | str | None = None,
    private: bool | None = None,
    tags: list[str] | None = None,
    revision: str | None = None,
    **upload: Any,
) -> str:
    """Upload a converted model to a repository, which is made where there is none, and return the
    address of the commit. A card there that is not ours stays.

    Args:
        tags: to add to those of the card.
        upload: `commit_message`, `commit_description`, `create_pr`, as `upload_folder` takes them.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    place: dict[str, Any] = {"repo_id": repo_id, "revision": revision}
    upload.setdefault("commit_message", f"Upload {type(model).__name__}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, kept_there = Path(scratch, "model"), []
        save(model, folder)
        write_card(folder, model, tags=tags or getattr(model, "model_tags", None) or ())
        if api.file_exists(filename=CARD, **place):
            card = api.hf_hub_download(filename=CARD, local_dir=Path(scratch, "there"), **place)
            kept_there = [] if is_ours(Path(card)) else [CARD]
        done = api.upload_folder(
            folder_path=folder,
            ignore_patterns=kept_there,
            delete_patterns=f"{WEIGHTS}-*.safetensors",  # of the model that was there
            **place,
            **upload,
        )
    return str(done)
