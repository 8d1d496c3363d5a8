"""Faults of `search`."""

from __future__ import annotations

from fault import faults_in

TABLE = "search/test_latency_table.py"

FAULTS = (
    *faults_in(
        "python/secateurs/search/knapsack.py",
        ("np.ceil((group - start) / width - 1e-9)", "np.floor((group - start) / width)",
         "search/test_knapsack.py -k just_above"),
        ("    if room < 0:\n", "    if room < -1:\n",
         "search/test_knapsack.py -k below_the_fastest"),
        ("better = candidate < after", "better = candidate > after", "search/test_knapsack.py"),
    ),
    *faults_in(
        "python/secateurs/search/choices.py",
        ("ordered = ordered.clamp_min(0).cumsum(0)", "ordered = ordered.clamp_min(0)",
         "search/test_choices.py -k least_error"),
        ("ordered.flip(0)", "ordered", "search/test_choices.py -k least_error"),
        ("np.linspace(1.0, 0.0,", "np.linspace(0.0, 1.0,", "search/test_choices.py -k least_error"),
    ),
    *faults_in(
        "python/secateurs/search/search.py",
        ("and not self._force:", "and False:", "search/test_compress.py -k noise"),
        ("if _CLOSE * times.ms >", "if 0 * times.ms >", "search/test_meeting.py -k by_luck"),
        ("        with evaluation_mode(model):", "        if model.eval():",
         "kinds/test_training_modes.py -k a_search_leaves"),
        ("budget = check_target(budget, effort)\n        with", "with",
         "search/test_compress.py -k search_refuses"),
        ("if best is None or found.distance < best.distance:\n                best = found\n"
         "        if best is None:",
         "if best is None:\n                best = found\n        if best is None:",
         "search/test_precisions.py -k all_that_is_searched"),
        ("model=model, distance=self._judge(model))",
         "model=model, distance=self._judge.under(found.recovered, found.plan))",
         "search/test_precisions.py -k rounding_loses"),
        ("key=lambda whole: whole[1].ms / whole[1].stock", "key=lambda whole: -whole[1].ms",
         "search/test_precisions.py -k far_behind"),
        ("            if slower > _SLOWER:\n", "            if False:\n",
         "search/test_precisions.py -k far_behind"),
        ("if times.ms > limit_of(budget, times.stock):", "if True:",
         "search/test_precisions.py -k is_not_searched"),
        ("best is None or found.distance < best.distance:\n                best = found\n"
         "        return best, self._told", "best is None:\n                best = found\n"
         "        return best, self._told", "search/test_precisions.py -k is_not_searched"),
        ("        if distance > bar:", "        if False:",
         "search/test_precisions.py -k far_behind"),
        ("raise refusals[min(refusals)]", "raise refusals[max(refusals)]",
         "search/test_precisions.py -k out_of_reach"),
        ("check_batches([*self._fitted, *distill_on])", "[*self._fitted, *distill_on]",
         "search/test_compress.py -k bad_input"),
        ("[*self._fitted, *distill_on]", "[*self._fitted]",
         "search/test_meeting.py -k much_effort"),
        ("return min(found, distilled, key=lambda each: each.distance)", "return distilled",
         "search/test_meeting.py -k spoils_the_model"),
        ("trials + [Trial(name, refusal=refusal) for", "trials + 0 * [Trial(name) for",
         "search/test_precisions.py -k left_out_and_told"),
    ),
    *faults_in(
        "python/secateurs/search/sensitivity.py",
        ("(1 - _SHRUNK) * (output - mean)", "(output - mean)",
         "search/test_compress.py -k not_sensitive"),
        ("(logs[1] - logs[0])", "(logs[0] - logs[1])", "search/test_compress.py -k divergence"),
    ),
    *faults_in(
        "python/secateurs/search/local_search.py",
        ("step + 1 == looks and", "False and", "search/test_precisions.py -k far_behind"),
        ("if (found := distance(tried)) < least:", "if True:\n            found = distance(tried)",
         "search/test_compress.py -k more_effort"),
    ),
    *faults_in(
        "python/secateurs/search/meeting.py",
        ("            ratio *= _LOWER\n            continue\n", "            break\n",
         "search/test_meeting.py -k missed_by_little"),
        ("limit_of(budget, table.stock) / ratio", "limit_of(budget, table.stock)",
         "search/test_meeting.py -k corrected"),
        ("        if times.ms <= allowed:\n", "        if True:\n",
         "search/test_meeting.py -k names_the_nearest"),
        ("or choices.is_whole(sizes):\n                break\n",
         ":\n                break\n        if choices.is_whole(sizes):\n            break\n",
         "search/test_meeting.py -k missed_by_little"),
    ),
    *faults_in(
        "python/secateurs/search/precisions.py",
        ("return cast_copy(model, self.dtype)", "return model.to(self.dtype)",
         "search/test_precisions.py -k another_dtype"),
        ("return [as_it_is], {}", "name = AUTO", "search/test_precisions.py -k never_chosen"),
    ),
    *faults_in(
        "python/secateurs/search/examples.py",
        ("(2 * place + 1) * len(data) // (2 * count)", "place",
         "search/test_examples.py -k every_length"),
        ("if place not in judging", "if True", "search/test_examples.py -k judge_and"),
    ),
    *faults_in(
        "python/secateurs/search/latency_table.py",
        ("for _ in range(_TRIES):", "for _ in range(1):", f"{TABLE} -k once_more"),
        ("if table.least >= -_OFF * table.dense:", "if True:",
         f"{TABLE} -k once_more"),
        ("if table.spread > _BUSY:", "if False:", f"{TABLE} -k busy_minute"),
        ("        with evaluation_mode(model):", "        if model.eval():",
         "kinds/test_training_modes.py -k a_table"),
    ),
    *faults_in(
        "python/secateurs/search/layer_times.py",
        ("of_probes[key] - of_probes[full[key.group]]", "of_probes[key] - times[-1]",
         f"{TABLE} -k in_parts"),
        ("(times[-1] - times[-2]) / beyond", "-times[-1]", f"{TABLE} -k in_parts"),
        ("size + weights > max(total, _AT_ONCE)", "False", f"{TABLE} -k in_parts"),
        ("time / len(group.probed)", "time / 2", f"{TABLE} -k have_one_size"),
        ("*sizes[:_SMALLEST], ", "", f"{TABLE} -k none_to_all"),
    ),
)  # fmt: skip
