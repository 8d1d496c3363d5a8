"""What an error must be to be told to a stranger."""

from __future__ import annotations

from secateurs.errors import SecateursError


def sentence(error: BaseException) -> str:
    """What an error says, which is one line of words."""
    said = str(error)
    assert isinstance(error, SecateursError)
    assert said.isprintable()
    assert len(said.split()) > 4
    assert len(said) < 1000
    return said


# A few hundred alterations of saved models; thousands by `benchmarks/fuzz.py` itself.
