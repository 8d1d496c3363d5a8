// Into how many parts linears cut their inputs on four multiprocessors: on both sides of each limit.
#include "cases/case.h"
#include "cuda/library_linear/library_linear.h"
#include "cuda/sparse_linear/sparse_linear.h"
#include "cuda/stacked_linear/stacked_linear.h"

using namespace secateurs::cuda;

namespace {

void expect(int parts, int got) {
  if (got != parts)
    throw std::runtime_error("expected " + std::to_string(parts) + " parts, got " +
                             std::to_string(got));
}

int parts_of_stacks(int m, int rows, int blocks, int bn, int bk) {
  StackedLinear p{};
  p.epilogue.m = m;
  p.rows = rows;
  p.blocks = blocks;
  p.bn = bn;
  p.bk = bk;
  return cut(p, 0).parts;
}

int parts_of_sparse(int m, int n, int k) {
  SparseLinear p{};
  p.epilogue.m = m;
  p.epilogue.n = n;
  p.k = k;
  return cut(p, 0).parts;
}

int parts_of_library(int n, int k) {
  LibraryLinear p{};
  p.epilogue.m = 1;
  p.epilogue.n = n;
  p.k = k;
  p.p = p.q = 4;
  p.patterns = 16;
  p.ones = 8;
  return cut(p, 0).parts;
}

}  // namespace

std::vector<Case> cut_cases() {
  std::vector<Case> cases;
  const auto add = [&](const std::string& problem, int parts, auto run) {
    cases.push_back({"cut", problem, [=](std::uint64_t) { expect(parts, run()); }});
  };
  // Tiles of 16 rows and 16 outputs take 48 KiB: eight at once, of which 4.8 are three fifths.
  add("five tiles of eight", 0, [] { return parts_of_stacks(16, 5, 256, 16, 16); });
  add("four tiles of eight", 8, [] { return parts_of_stacks(16, 4, 256, 16, 16); });
  add("parts of 256 inputs", 5, [] { return parts_of_stacks(16, 4, 80, 16, 16); });
  add("no more parts than tiles", 0, [] { return parts_of_stacks(16, 4, 64, 16, 16); });
  add("no parts without blocks", 0, [] { return parts_of_stacks(16, 1, 0, 16, 16); });
  // With more outputs four at once, of which 2.4 are three fifths.
  add("three wide tiles of four", 0, [] { return parts_of_stacks(16, 3, 64, 128, 128); });
  add("two wide tiles of four", 4, [] { return parts_of_stacks(16, 2, 64, 128, 128); });
  add("three tiles of many rows", 0, [] { return parts_of_stacks(300, 1, 64, 128, 128); });
  add("two tiles of many rows", 2, [] { return parts_of_stacks(200, 1, 64, 128, 128); });
  add("three tiles of vectors", 0, [] { return parts_of_stacks(16, 3, 2048, 64, 1); });
  add("two tiles of vectors", 4, [] { return parts_of_stacks(16, 2, 2048, 64, 1); });
  add("three sparse tiles", 0, [] { return parts_of_sparse(16, 96, 4096); });
  add("two sparse tiles", 2, [] { return parts_of_sparse(16, 64, 1024); });
  add("two short sparse tiles", 0, [] { return parts_of_sparse(16, 64, 992); });
  add("a sparse tile of some rows", 4, [] { return parts_of_sparse(40, 128, 4096); });
  // Of half dense libraries, a tile takes 50 KiB: four at once.
  add("three tiles of a library", 0, [] { return parts_of_library(96, 4096); });
  add("two tiles of a library", 2, [] { return parts_of_library(64, 1024); });
  add("two short tiles of a library", 0, [] { return parts_of_library(64, 1000); });
  return cases;
}
