// Activations that a linear kernel applies. Their numbers are spelled here alone: the bindings export
// them to Python.
#pragma once

namespace secateurs {

enum class Activation : int { none, gelu, gelu_tanh, relu, silu };

// In the order of the enum.
constexpr const char* ACTIVATION_NAMES[] = {"none", "gelu", "gelu_tanh", "relu", "silu"};

}  // namespace secateurs
