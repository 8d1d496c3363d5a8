"""Faults of `ops`."""

from __future__ import annotations

from fault import faults_in

CHOICE = "ops/test_cuda_choice.py"
INT8 = "ops/test_int8_linear.py"
VECTORS = "ops/test_int8_vector_linear.py"

FAULTS = (
    *faults_in(
        "python/secateurs/ops/encoder_layer/cpu.py",
        ("t is None or t.is_contiguous()", "True", "ops/test_encoder_layer.py -k read_at_each"),
    ),
    *faults_in(
        "python/secateurs/ops/_backends/openmp.py",
        ("return own or found", "return found", "ops/test_cpu.py -k that_of_torch"),
        ("mode=ctypes.RTLD_GLOBAL", "mode=ctypes.RTLD_LOCAL", "ops/test_cpu.py -k that_of_torch"),
        ("if not MAPS.exists():", "if False:", "ops/test_cpu.py -k that_of_torch"),
    ),
    *faults_in(
        "python/secateurs/ops/int8_linear/reference.py",
        ("scale.isnan() & stored[:, group].any(1)", "scale.isnan()",
         f"{INT8} -k reference_ignores"),
        ("(smooth - smooth.detach())", "0", f"{INT8} -k gradients"),
    ),
    *faults_in(
        "python/secateurs/ops/attention/reference.py",
        ("operands.softcap * (scores / operands.softcap).tanh()", "scores",
         "ops/test_attention_softcap.py -k formula"),
    ),
    *faults_in(
        "python/secateurs/ops/attention/cpu.py",
        ("cpu.refuse(operands.q) or refuse_softcap(operands)", "cpu.refuse(operands.q)",
         "ops/test_attention_softcap.py -k leaves_it_to_torch"),
    ),
    *faults_in(
        "python/secateurs/ops/attention/operands.py",
        ("not 0 < cap < math.inf", "cap <= 0", "ops/test_attention_softcap.py -k cap_that_is_none"),
    ),
    *faults_in(
        "python/secateurs/ops/int8_vector_linear/reference.py",
        ("indptr.diff() > 0", "indptr.diff() >= 0", f"{VECTORS} -k nothing_is_kept"),
        ("pair[:, None] * GROUP + places", "pair[:, None] * GROUP + places * 0",
         f"{VECTORS} -k reference"),
    ),
    *faults_in(
        "python/secateurs/ops/encoder_layer/__init__.py",
        ("and len(bound) == len(layers)", "", "ops/test_encoder_layer.py -k not_bound"),
        ("x = encoder_layer(x, *layer", "y = encoder_layer(x, *layer",
         "ops/test_encoder_layer.py -k not_bound"),
    ),
    *faults_in(
        "python/secateurs/ops/_core/dispatch.py",
        ("key=lambda backend: backend.name != first", "key=lambda backend: backend.name == first",
         "ops/test_dispatch.py -k prefer"),
        ("first = self.prefer(operands)", "first = None", "ops/test_dispatch.py -k prefer"),
    ),
    *faults_in(
        "python/secateurs/ops/_core/gpu.py",
        ("newer = rows > FEW", "newer = rows >= FEW", f"{CHOICE} -k hopper"),
        ("architecture(device) >= 90\n", "architecture(device) >= 80\n", f"{CHOICE} -k hopper"),
        ("_prefer(q.device, q.shape[-2])", "_prefer(q.device, q.shape[0])", f"{CHOICE} -k hopper"),
        ("and refuse_vendor() is None and", "and", f"{CHOICE} -k off_nvidia"),
    ),
)  # fmt: skip
