"""Faults of `integrations`."""

from __future__ import annotations

from fault import faults_in

QUANTIZER = "integrations/test_transformers_quantizer.py"
INTEGRATIONS = "python/secateurs/integrations"

FAULTS = (
    *faults_in(
        f"{INTEGRATIONS}/transformers_quantizer.py",
        ("if loaded.dtype != self._dtype:", "if False:", f"{QUANTIZER} -k dtype"),
        ("if asked.__name__ != saved:", "if False:", f"{QUANTIZER} -k another_class"),
        ("if asked != (", "if False and asked != (", f"{QUANTIZER} -k cannot_follow"),
        ("given.get(name) != saved.get(name)", "False", f"{QUANTIZER} -k cannot_follow"),
        ("setattr(loaded.config, name, value)", "pass", f"{QUANTIZER} -k may_set"),
        ("requires_calibration = True", "requires_calibration = False",
         f"{QUANTIZER} -k not_quantised"),
        ("if len(devices) != 1 or", "if", f"{QUANTIZER} -k cannot_follow"),
        ("_fetch(folder, name, model.config)", "pass", f"{QUANTIZER} -k hub"),
        ("loaded.generation_config = given", "pass", f"{QUANTIZER} -k how_to_generate"),
        ("model._modules.clear()", "pass", f"{QUANTIZER} -k emptied"),
        ("if files is None:", "if False:",
         "integrations/test_transformers_quantizer.py -k state_dict"),
    ),
    *faults_in(
        f"{INTEGRATIONS}/registration.py",
        ("if _REGISTERS in sys.modules:", "if False:", f"{QUANTIZER} -k imported_first"),
        ("return getattr(self._own, name)", "raise AttributeError(name)",
         f"{QUANTIZER} -k imported_first"),
    ),
    *faults_in(
        f"{INTEGRATIONS}/sentence_embeddings.py",
        ("embedder[0].model = model", "pass",
         "integrations/test_sentence_transformers.py -k takes_the_place"),
        ('    if kind != "SentenceTransformer":\n', "    if False:\n",
         "integrations/test_sentence_transformers.py -k no_embeddings"),
    ),
    *faults_in(
        "python/secateurs/integrations/exported.py",
        ("if not distance <= allowed:", "if False:",
         "integrations/test_exported.py -k something_else"),
        ("shutil.rmtree(out, ignore_errors=True)", "pass",
         "integrations/test_exported.py -k something_else"),
        ("    if strange:\n", "    if False:\n",
         "integrations/test_exported.py -k cannot_be_exported"),
        ("    for shape in shapes:\n        inputs(shape)\n", "",
         "cli/test_image_models.py -k any_number"),
        ("shape if tokens is None else (shape[0], tokens)", "shape",
         "integrations/test_exported.py -k other_inputs"),
        ("(0, 1) if open_length else (0,)", "(0,)",
         "integrations/test_exported.py -k other_inputs"),
    ),
    *faults_in(
        "python/secateurs/integrations/runtimes/__init__.py",
        ('    check_installed(row.PACKAGES, f"to export to {name}")\n', "",
         "integrations/test_exported.py -k missing"),
    ),
)  # fmt: skip
