"""Faults of `measurement`."""

from __future__ import annotations

from fault import faults_in

FAMILIES = "architectures/test_families.py"

FAULTS = (
    *faults_in(
        "python/secateurs/measurement/timing.py",
        ("        order.reverse()\n", "", "measurement/test_timing.py -k alternate"),
        ("speedup=timings[1].ms / timings[0].ms", "speedup=timings[0].ms / timings[1].ms",
         "measurement/test_timing.py -k median_speedup"),
        ("            return math.nan\n", "            continue\n",
         "measurement/test_timing.py -k nan_on_one_side"),
        ("position = q * (len(ordered) - 1)", "position = q * len(ordered) - 1",
         "measurement/test_timing.py -k quantiles"),
    ),
    *faults_in(
        "python/secateurs/measurement/rows.py",
        ("error <= tolerance,", "True,", "measurement/test_timing.py -k wrong_output"),
    ),
    *faults_in(
        "python/secateurs/measurement/quality.py",
        ("weights = token_weights(states, batch).expand(*states.shape[:2], 1).double()",
         "weights = torch.ones(*states.shape[:2], 1).double()",
         "measurement/test_quality.py -k real_tokens"),
    ),
    *faults_in(
        "python/secateurs/measurement/inputs.py",
        ("frames = (frames - 1) * stride + kernel", "frames = frames * stride + kernel",
         f"{FAMILIES} -k frames"),
        ("if tokens != made:", "if False:", "measurement/test_quality.py -k one_size"),
    ),
    *faults_in(
        "python/secateurs/measurement/parts.py",
        ("self._seconds += ", "self._seconds = ", "measurement/test_parts.py -k time_of_its"),
        ("                self._seconds = 0.0\n", "", "measurement/test_parts.py -k time_of_its"),
        ("        if below in layers:\n", "        if False:\n",
         "measurement/test_parts.py -k every_module"),
        ("**{path: [module] for module, path in beside.items()},",
         '**{path: [module] for path, module in _beside(model, "", layers)},',
         "measurement/test_parts.py -k several_places"),
        ("[*modules] for part, modules", "[*modules] * 2 for part, modules",
         "measurement/test_parts.py -k several_places"),
        ("handle.remove()", "pass", "measurement/test_parts.py -k left_on"),
        ("timing if watch.called else None", "timing", "measurement/test_parts.py -k time_of_its"),
    ),
    *faults_in(
        "python/secateurs/measurement/similarity.py",
        ("[torch.tensor(order).argsort()]", "", "measurement/test_similarity.py -k real_tokens"),
        ("parts.append(pooled(states, batch))", "parts.append(states.mean(1))",
         "measurement/test_similarity.py -k real_tokens"),
        ("    if not bool(torch.isfinite(cosines).all()):\n", "    if False:\n",
         "measurement/test_similarity.py -k ranked_against"),
        ("check_known(tokenizer, known)", "pass", "measurement/test_similarity.py -k refused"),
    ),
)  # fmt: skip
