"""Faults of `storage`."""

from __future__ import annotations

from fault import faults_in

CODES = "conversion/test_int8.py"
QUANTIZER = "integrations/test_transformers_quantizer.py"
SENTENCES = "integrations/test_sentence_transformers.py"
COMPACT = "storage/test_compact_export.py"
FAMILIES = "architectures/test_families.py"

FAULTS = (
    *faults_in(
        "python/secateurs/storage/layer_writer.py",
        ("if linear.bias is not None and stock.bias is not None:", "if linear.bias is not None:",
         f"{FAMILIES} -k contract and whisper"),
        ('tensors[f"{path}.{name}"] = factor', "pass",
         "architectures/test_families.py -k contract and beit"),
    ),
    *faults_in(
        "python/secateurs/storage/model_folders.py",
        ("            shutil.copyfile(Path(path) / name, out / name)\n", "            pass\n",
         "cli/test_image_models.py -k without_data"),
    ),
    *faults_in(
        "python/secateurs/storage/dense_export.py",
        ("if sites.keep(plan, i).kept_rules is not None:", "if False:",
         "storage/test_checkpoint.py -k refuses_attention_rules"),
    ),
    *faults_in(
        "python/secateurs/storage/checkpoint.py",
        ('"transformers_weights": SENTINEL,', "", f"{QUANTIZER} -k gives_what_load"),
    ),
    *faults_in(
        "python/secateurs/storage/compact_export.py",
        ('apart = side == "heads" or not keep.grouped', 'apart = side == "heads"',
         f"{COMPACT} -k uneven_get_copies"),
        ("weight is None or not weight.numel()", "weight is None", f"{COMPACT} -k computes"),
        ("return weight, weight.new_zeros(rows)", "return weight, weight.new_ones(rows).cumsum(0)",
         f"{COMPACT} -k computes"),
        ("heads.index_select(0, keep.kv_of.to(tensor.device))", "heads[[0] * len(keep.kv_of)]",
         f"{COMPACT} -k uneven_get_copies"),
        ("**dict.fromkeys(_WIDTHS, width),", "", f"{COMPACT} -k computes and gpt2"),
        ('"num_key_value_groups": width // kv_width,', "", f"{COMPACT} -k uneven_get_copies"),
        ("module.out_features, module.in_features = module.weight.shape", "pass",
         f"{COMPACT} -k sizes_that_are_left"),
        ("return keep.shape.architecture.attention.biased", "return False",
         "storage/test_compact_export.py -k computes and t5"),
    ),
    *faults_in(
        "python/secateurs/storage/sentence_folders.py",
        ('first["path"] != "" or not', "not", f"{SENTENCES} -k refused_before"),
        ('is_plain_name(module["path"])', "True", f"{SENTENCES} -k refused_before"),
        ("needs if isinstance(needs, dict) else {}", "{}", f"{SENTENCES} -k needs_us"),
        ("shutil.copyfile(file, copy)", "pass", f"{SENTENCES} -k embeds_as"),
    ),
    *faults_in(
        "python/secateurs/storage/model_folders.py",
        ("cls = transformers.AutoModel  #", "pass  #", f"{SENTENCES} -k head"),
        ("if wants_states(path) or not has_classifier(path, head):", "if False:",
         f"{SENTENCES} -k drop_the_head"),
    ),
    *faults_in(
        "python/secateurs/storage/layer_reader.py",
        ("if codes.numel() and int(codes.min()) < -TOP:", "if False:", f"{CODES} -k altered"),
        ("float(scales.min()) <= 0", "False", f"{CODES} -k altered"),
    ),
    *faults_in(
        "python/secateurs/storage/blueprint.py",
        ("except ZeroDivisionError:", "except IndexError:",
         "architectures/test_families.py -k contract and modernbert"),
        ("            if left and not unread:", "            if False:",
         "storage/test_checkpoint.py -k no_layer_has"),
        ("        if strange:\n", "        if False:\n",
         "conversion/test_rounding.py -k other_linears"),
    ),
    *faults_in(
        "python/secateurs/storage/model_card.py",
        ("if not may_be_written(directory):", "if False:",
         "storage/test_model_card.py -k somebody_else"),
        ("ours = found is not None and found[1] ==", "ours = found is not None or found[1] ==",
         "storage/test_model_card.py -k somebody_else"),
        ("return path if came and _HUB_NAME", "return path if _HUB_NAME",
         "storage/test_model_card.py -k named_as_the_base"),
        ("*([] if measured is None else _measured(measured)),", "",
         "storage/test_model_card.py -k figures"),
        ("if any(len(row) != len(names) for row in rows):", "if False:",
         "storage/test_model_card.py -k does_not_fit"),
    ),
    *faults_in(
        "python/secateurs/storage/hub.py",
        ("kept_there = [] if is_ours(Path(card)) else [CARD]", "kept_there = []",
         "storage/test_model_card.py -k leaves_a_card"),
        ('f"{WEIGHTS}-*.safetensors"', '"none"', "storage/test_model_card.py -k what_is_pushed"),
    ),
    *faults_in(
        "python/secateurs/storage/compact_import.py",
        ("if not torch.equal(copies[first][of], copies):", "if False:",
         "storage/test_compact_import.py -k copies"),
        ("if masked or not torch.equal(keep.rounded(role, wide), wide):", "if False:",
         "storage/test_compact_import.py -k left_their_mask"),
        ("if tuple(weight.shape) != expected:", "if False:",
         "storage/test_compact_import.py -k other_makers"),
        ("wide_bias[rows] = _one_of_copies", "wide_bias[~rows] = _one_of_copies",
         "storage/test_compact_import.py -k computes and bert"),
    ),
)  # fmt: skip
