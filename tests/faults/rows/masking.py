"""Faults of `masking`."""

from __future__ import annotations

from fault import faults_in

RULED = "masking/test_ruled_attention.py"
GATES = "masking/test_gates.py"

FAULTS = (
    *faults_in(
        "python/secateurs/masking/gates.py",
        ("        self._gates.clear()\n", "", "masking/test_gates.py -k remember_nothing"),
        ("            self._opened().callback(ruled.install(self._model, self._sites, index))\n",
         "            ruled.install(self._model, self._sites, index)\n",
         "masking/test_gates.py -k what_apply_computes"),
        ("x.unflatten(0, sizes[0]) if x.dim() == 2 else x", "x", f"{GATES} -k all_tokens_as_one"),
        ("if batched and x.dim() > 2", "if batched", f"{GATES} -k all_tokens_as_one"),
    ),
    *faults_in(
        "python/secateurs/masking/ruled_attention.py",
        ("seen = seen.tril(keys - tokens)", "pass", f"{RULED} -k stays_causal"),
        ("seen = seen.tril(keys - tokens)", "seen = seen.tril()", f"{RULED} -k cache_moves"),
        ("+ _before(attention, given)", "", f"{RULED} -k cache_moves"),
        (".masked_fill(blind.transpose(1, 2)[..., None], 0)", "", f"{RULED} -k bert_with_rules"),
        ("self._blind.pop(get_ident(), None)", "self._blind[max(self._blind)]",
         f"{RULED} -k threads"),
        ("    if not isinstance(cache, DynamicCache):", "    if False:",
         f"{RULED} -k stand_elsewhere"),
        ("    if keys != expected:", "    if False:", f"{RULED} -k stand_elsewhere"),
    ),
    *faults_in(
        "python/secateurs/masking/masked_model.py",
        ('vars(part)["save_pretrained"] = _refuse_to_save', "pass", f"{RULED} -k not_saved_as_if"),
    ),
)  # fmt: skip
