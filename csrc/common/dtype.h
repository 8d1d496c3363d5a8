// Types of elements. Their numbers are spelled here alone: the bindings export them to Python.
#pragma once

namespace secateurs {

enum class Dtype : int { float32, bfloat16, float16 };

// In the order of the enum, as torch calls them.
constexpr const char* DTYPE_NAMES[] = {"float32", "bfloat16", "float16"};

}  // namespace secateurs
