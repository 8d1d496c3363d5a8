"""How a sparse weight is stored: one class and one file per packing format."""

from secateurs.formats.block_sparse import BlockSparseWeight
from secateurs.formats.codebook import LibraryWeight
from secateurs.formats.int8_block_sparse import Int8Weight
from secateurs.formats.int8_vector import Int8VectorWeight
from secateurs.formats.vector_nm import VectorWeight

__all__ = ["BlockSparseWeight", "Int8VectorWeight", "Int8Weight", "LibraryWeight", "VectorWeight"]
