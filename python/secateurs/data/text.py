"""Text in, batches out: sentences and JSON lines, tokenised for a transformers model."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.checks import brief, first_line
from secateurs.data.base import IGNORED
from secateurs.errors import DataError

MOST_UNKNOWN = 0.5  # share of the tokens of a text that a tokenizer may not know
_LABELS = 2**31

# A sentence ends at a space behind its stop, or behind the quotation mark that closes it; not
# behind an abbreviation, nor before a small letter ("Indeed!" said he).
_QUOTES = "\"'\u2019\u201d"
_END = re.compile(
    rf"(?:(?<=[.!?])|(?<=[.!?][{_QUOTES}]))(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)\s+(?![a-z])"
)


def sentences(text: str, min_words: int = 4) -> list[str]:
    """The sentences of at least `min_words` words, in order; a line break always ends one."""
    parts = [part.strip() for line in text.splitlines() for part in _END.split(line)]
    return [s for s in parts if len(s.split()) >= min_words]


def read_text(path: str | Path) -> list[str]:
    """The sentences of a UTF-8 text file. Raises DataError if it cannot be read or holds none."""
    lines = sentences(read_utf8(path))
    if not lines:
        raise DataError(f"expected a text with sentences of four words or more, got none in {path}")
    return lines


def read_examples(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file: objects with `text`, maybe `text_pair`, and maybe `label`, a
    number, or `target`, the text that a decoder should write.

    Raises DataError, with the line, if one is anything else; each is on all rows or none.
    """
    rows = []
    for place, row in json_lines(path):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"expected an object with a string 'text' at {place}, got {brief(row)}")
        for key, kind, fits in _FIELDS:
            if key in row and not fits(row[key]):
                raise DataError(f"expected {kind} as {key} at {place}, got {brief(row[key])}")
        if "label" in row and "target" in row:
            raise DataError(f"expected a label or a target at {place}, got both")
        rows.append(row)
    if not rows:
        raise DataError(f"expected at least one example, got an empty file {path}")
    for key, *_ in _FIELDS:
        having = sum(key in row for row in rows)
        if having not in (0, len(rows)):
            raise DataError(
                f"expected {key} on all rows or none, got {having} of {len(rows)}: {path}"
            )
    return rows


def json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSON-lines file, each with where it stands. Raises DataError for a file that
    cannot be read, and a line that is anything else."""
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected JSON at {place}, got {first_line(error)}") from None
        yield place, row


def batches(
    tokenizer: Any, rows: Sequence[str | dict[str, Any]], batch_size: int, max_length: int
) -> list[dict[str, Tensor]]:
    """Padded batches of sentences or examples; similar lengths together keep padding small.

    Raises DataError for a tokenizer that cannot read them, or does not know most of their words.
    """
    examples = [{"text": row} if isinstance(row, str) else row for row in rows]
    examples = sorted(examples, key=lambda e: len(e["text"]) + len(e.get("text_pair", "")))
    made = []
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        pairs = [e["text_pair"] for e in part] if "text_pair" in part[0] else None
        texts = [e["text"] for e in part]
        together = {"padding": True, "return_tensors": "pt"}
        batch = dict(tokenized(tokenizer, texts, pairs, max_length, **together))
        if "label" in part[0]:
            batch["labels"] = torch.tensor([e["label"] for e in part])
        if "target" in part[0]:
            batch |= _targets(tokenizer, [e["target"] for e in part], max_length)
        made.append(batch)
    check_known(tokenizer, (ids for batch in made for ids in _unpadded(batch)))
    return made


def tokenized(
    tokenizer: Any,
    texts: Sequence[Any],
    pairs: Sequence[str] | None,
    max_length: int,
    **options: Any,
) -> Any:
    """Tokenize texts, or pairs of them, with `tokenizer`, cut to `max_length` tokens. Raises
    DataError where it fails."""
    try:
        return tokenizer(texts, pairs, truncation=True, max_length=max_length, **options)
    except Exception as error:  # tokenizers raise whatever they come to
        raise DataError(f"the tokenizer cannot read the text: {first_line(error)}") from error


def _targets(tokenizer: Any, targets: Sequence[str], max_length: int) -> dict[str, Tensor]:
    """What a decoder should write, `[B, T]`, and which of its tokens are no padding."""
    options = {"truncation": True, "max_length": max_length, "padding": True}
    try:
        wanted = tokenizer(text_target=list(targets), return_tensors="pt", **options)
    except Exception as error:  # tokenizers raise whatever they come to
        raise DataError(f"the tokenizer cannot read the targets: {first_line(error)}") from error
    real = wanted["attention_mask"]
    labels = wanted["input_ids"].masked_fill(real == 0, IGNORED)
    return {"labels": labels, "decoder_attention_mask": real}


def check_targets(model: nn.Module, rows: Sequence[str | dict[str, Any]]) -> None:
    """Raise DataError unless rows say what the decoder of `model` should write, if it has an
    encoder and a decoder, and do not if it has none."""
    told = isinstance(rows[0], dict) and "target" in rows[0]
    config: Any = model.config
    both = bool(getattr(config, "is_encoder_decoder", False))
    writes = both and bool(getattr(model, "can_generate", bool)())
    if writes and not told:
        raise DataError(
            f"expected examples with text and target, the text that {type(model).__name__} should "
            "write, as JSON lines; got some without target"
        )
    if told and not writes:
        raise DataError(
            "expected targets for a model with an encoder and a decoder that writes alone, got "
            f"them for {type(model).__name__}"
        )


def check_known(tokenizer: Any, examples: Iterable[Sequence[int]]) -> None:
    """Raise DataError if more than half of the tokens are ones the tokenizer does not know: a model
    learns nothing from them."""
    unknown = _unknown(tokenizer)
    if unknown is None:
        return
    others = set(tokenizer.all_special_ids) - {unknown}  # of these every text has some
    words = strange = 0
    for ids in examples:
        words += sum(i not in others for i in ids)
        strange += sum(i == unknown for i in ids)
    if strange > MOST_UNKNOWN * words:
        raise DataError(
            f"expected a text in the tokenizer's words, got {strange} unknown tokens of {words}"
        )


def check_has_files(tokenizer: Any, folder: str | Path) -> None:
    """Raise DataError unless the vocabulary of `tokenizer` lies in `folder`: without its files an
    empty one is made up."""
    names = dict.fromkeys(("tokenizer.json", *tokenizer.vocab_files_names.values()))
    if not any((Path(folder) / name).is_file() for name in names):
        raise DataError(f"expected a tokenizer in {folder}, got none of {', '.join(names)}")


def fit_tokenizer(tokenizer: Any, model: nn.Module, max_length: int) -> int:
    """Let `tokenizer` pad, with the end of a text where it has no token of its own for that, and
    give only what `model` takes; let `model` know its padding. Returns the tokens that a text of up
    to `max_length` may have.

    Raises DataError if there is no token to pad with, or no room beside the special tokens.
    """
    if tokenizer.pad_token is None:
        for token in (tokenizer.eos_token, tokenizer.unk_token):
            if token is not None:
                tokenizer.pad_token = token
                break
        else:
            raise DataError("expected a tokenizer with a token to pad with, got none")
    config: Any = model.config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
        # As the model would be made of this config: its modules were made of one without.
        for module in model.modules():
            if getattr(module, "padding_idx", 0) is None:
                module.padding_idx = tokenizer.pad_token_id
    takes = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n in takes]
    most = min(max_length, most_tokens(model) or max_length)
    special = tokenizer.num_special_tokens_to_add()
    if most <= special:
        raise DataError(f"expected a length of more than {special} special tokens, got {most}")
    return most


def most_tokens(model: nn.Module) -> int | None:
    """How many tokens a sequence of `model` may have; None if nothing says so."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    return positions


def _unknown(tokenizer: Any) -> int | None:
    """The token that stands for unknown words, which only the model of a tokenizer may name."""
    if getattr(tokenizer, "unk_token_id", None) is not None:
        return int(tokenizer.unk_token_id)
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    name = getattr(model, "unk_token", None)
    return None if name is None else tokenizer.backend_tokenizer.token_to_id(name)


def _unpadded(batch: dict[str, Tensor]) -> list[list[int]]:
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids)).bool()
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]


def _is_label(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) < _LABELS


_FIELDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("text_pair", "a string", lambda value: isinstance(value, str)),
    ("target", "a string", lambda value: isinstance(value, str)),
    ("label", "a number", _is_label),
)


def read_utf8(path: str | Path) -> str:
    """The text of a file. Raises DataError if it cannot be read, or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected a readable UTF-8 file, got {error}") from None
