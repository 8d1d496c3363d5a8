"""Faults of what every floor stands on."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
    *faults_in(
        "python/secateurs/files.py",
        ("        scratch.unlink(missing_ok=True)\n\n\ndef written_by_content",
         "        pass\n\n\ndef written_by_content",
         "kinds/test_interrupted_saves.py -k whole_or_as_before"),
    ),
    *faults_in(
        "python/secateurs/checks.py",
        ("isinstance(value, bool) or not isinstance(value, numbers.Integral)",
         "not isinstance(value, numbers.Integral)", "kinds/test_unchecked_input.py"),
        ('any(hasattr(module, "_hf_hook") for module in model.modules())', "False",
         "kinds/test_placed_models.py -k offloaded"),
    ),
    *faults_in(
        "python/secateurs/shells.py",
        ("shell.set_submodule(path, copy.deepcopy(shared))", "pass",
         "reconstruction/test_refit.py -k only_kept_columns"),
        ("        shell.set_submodule(path, shared)", "        pass",
         "reconstruction/test_refit.py -k one_layer_more"),
    ),
)  # fmt: skip
