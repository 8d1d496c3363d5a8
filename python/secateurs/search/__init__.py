"""Search: the plan that meets a measured time at the least loss."""

from secateurs.search.latency_table import LatencyTable
from secateurs.search.search import Compressed, Search, compress

__all__ = ["Compressed", "LatencyTable", "Search", "compress"]
