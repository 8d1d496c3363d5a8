#include "cpu/dispatch.h"

#include <stdexcept>

#if defined(__x86_64__)
  #include <cpuid.h>
  #if defined(__linux__)
    #include <sys/syscall.h>
    #include <unistd.h>
  #endif
#endif

namespace secateurs::cpu {

namespace portable {
extern const Kernels kernels;
}
#ifdef SECATEURS_HAS_avx2
namespace avx2 {
extern const Kernels kernels;
}
#endif
#ifdef SECATEURS_HAS_avx_vnni
namespace avx_vnni {
extern const Kernels kernels;
}
#endif
#ifdef SECATEURS_HAS_avx512
namespace avx512 {
extern const Kernels kernels;
}
#endif
#ifdef SECATEURS_HAS_avx512_vnni
namespace avx512_vnni {
extern const Kernels kernels;
}
#endif
#ifdef SECATEURS_HAS_avx512_bf16
namespace avx512_bf16 {
extern const Kernels kernels;
}
#endif
#ifdef SECATEURS_HAS_amx
namespace amx {
extern const Kernels kernels;
}
#endif
#ifdef SECATEURS_HAS_emulated_amx
namespace emulated_amx {
extern const Kernels kernels;
}
#endif

namespace {

struct Features {
  bool avx2 = false, avx_vnni = false, avx512 = false, avx512_vnni = false, avx512_bf16 = false,
       amx = false;
};

#if defined(__x86_64__)

// Registers the operating system saves on a context switch; an instruction set it does not save
// cannot be used.
std::uint64_t saved_state() {
  unsigned lo, hi;
  __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return std::uint64_t{hi} << 32 | lo;
}

// Linux hands out the tile registers on request only.
bool tiles_permitted() {
  #if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  #else
  return false;
  #endif
}

Features detect() {
  Features f;
  unsigned a, b, c, d;
  const auto bit = [](unsigned word, int i) { return (word >> i & 1) != 0; };
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return f;
  const bool fma = bit(c, 12) && bit(c, 28);
  const std::uint64_t saved = saved_state();
  const auto saves = [&](std::uint64_t mask) { return (saved & mask) == mask; };
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const unsigned c70 = c, d70 = d;
  f.avx2 = fma && bit(b, 5) && saves(0x6);
  f.avx512 = f.avx2 && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31) && saves(0xe6);
  f.avx512_vnni = f.avx512 && bit(c70, 11);
  const bool more = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0;
  f.avx_vnni = f.avx2 && more && bit(a, 4);
  // With permutations of bytes, which all have but one, Cooper Lake.
  f.avx512_bf16 = f.avx512_vnni && more && bit(a, 5) && bit(c70, 1);
  // Tiles, with products of bfloat16 and of codes.
  f.amx = f.avx512_bf16 && bit(d70, 22) && bit(d70, 24) && bit(d70, 25) && saves(0x600e6) &&
          tiles_permitted();
  return f;
}

#else

Features detect() { return {}; }

#endif

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> table = [] {
    [[maybe_unused]] const Features cpu = detect();
    return std::vector<Isa>{
#ifdef SECATEURS_HAS_amx
        {&amx::kernels, cpu.amx},
#endif
#ifdef SECATEURS_HAS_avx512_bf16
        {&avx512_bf16::kernels, cpu.avx512_bf16},
#endif
#ifdef SECATEURS_HAS_avx512_vnni
        {&avx512_vnni::kernels, cpu.avx512_vnni},
#endif
#ifdef SECATEURS_HAS_avx512
        {&avx512::kernels, cpu.avx512},
#endif
#ifdef SECATEURS_HAS_avx_vnni
        {&avx_vnni::kernels, cpu.avx_vnni},
#endif
#ifdef SECATEURS_HAS_avx2
        {&avx2::kernels, cpu.avx2},
#endif
        {&portable::kernels, true},
#ifdef SECATEURS_HAS_emulated_amx
        {&emulated_amx::kernels, cpu.avx512_bf16},  // last: for those who ask for it
#endif
    };
  }();
  return table;
}

int choose(const std::string& name) {
  const auto& table = isas();
  std::string known, runnable;
  for (std::size_t i = 0; i < table.size(); ++i) {
    const Isa& isa = table[i];
    if (isa.supported && (name.empty() || name == isa.kernels->name)) return static_cast<int>(i);
    known += (known.empty() ? "" : ", ") + std::string(isa.kernels->name);
    if (isa.supported) runnable += (runnable.empty() ? "" : ", ") + std::string(isa.kernels->name);
  }
  throw std::invalid_argument("expected an instruction set this CPU runs (" + runnable +
                              "; built: " + known + "), got \"" + name + "\"");
}

}  // namespace secateurs::cpu
