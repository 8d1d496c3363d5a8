"""Search: the plan that meets a measured time at the least loss."""

from secateurs.search.compression import compress
from secateurs.search.latency_table import LatencyTable
from secateurs.search.result import Compressed, Trial
from secateurs.search.search import Search

__all__ = ["Compressed", "LatencyTable", "Search", "Trial", "compress"]
