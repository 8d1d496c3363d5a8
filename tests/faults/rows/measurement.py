"""Faults of `measurement`."""

from __future__ import annotations

from fault import faults_in

FAMILIES = "architectures/test_families.py"

FAULTS = (
    *faults_in(
        "python/secateurs/measurement/timing.py",
        ("            order.reverse()\n", "            pass\n",
         "measurement/test_timing.py -k alternate"),
        ("if len(order) > 2:", "if False:", "measurement/test_timing.py -k more_than_two"),
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
        "python/secateurs/measurement/environment.py",
        ("    if missing:\n", "    if False:\n", "integrations/test_exported.py -k missing"),
    ),
    *faults_in(
        "python/secateurs/measurement/peers/__init__.py",
        ("if all(map(find_spec, peer.packages))", "if any(map(find_spec, peer.packages))",
         "measurement/test_peers.py -k all_of_its_packages"),
        ("    if name not in PEERS:\n", "    if False:\n",
         "measurement/test_peers.py -k by_its_runtime"),
    ),
    *faults_in(
        "python/secateurs/measurement/peers/apart.py",
        ("torch.set_num_threads(order.threads)", "pass",
         "measurement/test_peers.py -k of_its_order"),
        ("            with _silenced():\n", "            if True:\n",
         "measurement/test_peers.py -k of_its_own"),
        ("alternate([peer.sample, stock]", "alternate([peer.sample, peer.sample]",
         "measurement/test_peers.py -k take_turns"),
        ("        module._forward_hooks.clear()\n", "",
         "measurement/test_peers.py -k without_hooks"),
        ("settle=SETTLE)\n        return", "settle=0)\n        return",
         "measurement/test_peers.py -k take_turns"),
    ),
    *faults_in(
        "python/secateurs/measurement/peers/against_stock.py",
        ("totals += weight * np", "totals += np", "measurement/test_peers.py -k weighted"),
        ("with evaluation_mode(model):", "if True:", "measurement/test_peers.py -k weighted"),
        ("        mask[:, mask.shape[1] // 2 + 1 :] = 0\n", "",
         "measurement/test_peers.py -k other_outputs"),
        ("    if not error <= ", "    if False and error <= ",
         "measurement/test_peers.py -k other_outputs"),
        (")[:examples])", "))", "measurement/test_peers.py -k cut_or_padded"),
        ("[place % len(chosen)][:tokens]", "[place % len(chosen)][-tokens:]",
         "measurement/test_peers.py -k cut_or_padded"),
        ("row[real] for row, real", "row for row, real",
         "measurement/test_peers.py -k cut_or_padded"),
        ('name == "token_type_ids" and not bool(value.any())', 'name == "token_type_ids"',
         "measurement/test_peers.py -k texts_alone"),
        ('    if device.type != "cpu":\n', "    if False:\n",
         "measurement/test_peers.py -k on_the_cpu"),
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
