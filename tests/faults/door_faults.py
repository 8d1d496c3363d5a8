# ruff: noqa: E501 - texts of other files keep their lines
"""Faults in the doors: model cards, uploads, exports for other runtimes, and the way back."""

from __future__ import annotations

from fault import faults_in

STORAGE, INTEGRATIONS = "python/secateurs/storage", "python/secateurs/integrations"
CARD, IMPORT = "storage/test_model_card.py", "storage/test_compact_import.py"
EXPORTED = "integrations/test_exported.py"

DOOR_FAULTS = (
    *faults_in(
        f"{STORAGE}/model_card.py",
        ("if path.exists() and not is_ours(path):", "if False:", f"{CARD} -k somebody_else"),
        ("return found is not None and found[1] ==", "return found is not None or found[1] ==", f"{CARD} -k somebody_else"),
        ("return path if came and _HUB_NAME", "return path if _HUB_NAME", f"{CARD} -k named_as_the_base"),
        ('*([] if measured is None else _measured(measured)),', "", f"{CARD} -k figures"),
    ),
    *faults_in(
        f"{STORAGE}/hub.py",
        ("kept_there = [] if is_ours(Path(card)) else [CARD]", "kept_there = []", f"{CARD} -k leaves_a_card"),
        ('f"{WEIGHTS}-*.safetensors"', '"none"', f"{CARD} -k what_is_pushed"),
    ),
    *faults_in(
        f"{STORAGE}/compact_import.py",
        ("if not torch.equal(copies[first][of], copies):", "if False:", f"{IMPORT} -k copies"),
        ("if masked or not torch.equal(keep.rounded(role, wide), wide):", "if False:", f"{IMPORT} -k left_their_mask"),
        ("if tuple(weight.shape) != expected:", "if False:", f"{IMPORT} -k other_makers"),
        ("wide_bias[rows] = _one_of_copies", "wide_bias[~rows] = _one_of_copies", f"{IMPORT} -k computes and bert"),
    ),
    *faults_in(
        f"{INTEGRATIONS}/exported.py",
        ("if not distance <= allowed:", "if False:", f"{EXPORTED} -k something_else"),
        ("shutil.rmtree(out, ignore_errors=True)", "pass", f"{EXPORTED} -k something_else"),
        ('if compact.main_input_name != "input_ids":', "if False:", f"{EXPORTED} -k cannot_be_exported"),
    ),
    *faults_in(
        f"{INTEGRATIONS}/runtimes/__init__.py",
        ("    if missing:", "    if False:", f"{EXPORTED} -k missing"),
    ),
    *faults_in(
        f"{INTEGRATIONS}/transformers_quantizer.py",
        ("if files is None:", "if False:", "integrations/test_transformers_quantizer.py -k state_dict"),
    ),
)  # fmt: skip
