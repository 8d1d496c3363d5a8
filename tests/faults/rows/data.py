"""Faults of `data`."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
    *faults_in(
        "python/secateurs/data/text.py",
        ("if writes and not told:", "if False:", "cli/test_cli_refusals.py -k writes"),
        ("if told and not writes:", "if False:", "cli/test_cli_refusals.py -k writes"),
        (".masked_fill(real == 0, IGNORED)", "", "data/test_text.py -k targets"),
        ('if "label" in row and "target" in row:', "if False:", "data/test_text.py -k refused_in"),
        (r"(?<!Mrs\.)", "", "data/test_text.py -k abbreviations"),
        ('batch["labels"] = torch.tensor([e["label"] for e in part])', "pass",
         "data/test_text.py -k labels_with_their_text"),
        ('len(e["text"]) + len(e.get("text_pair", ""))', "0",
         "data/test_text.py -k similar_lengths"),
    ),
    *faults_in(
        "python/secateurs/data/sentence_pairs.py",
        ("return number if math.isfinite(number) else None", "return number",
         "data/test_sentence_pairs.py -k refused"),
        ("        if len(cells) != len(names):\n", "        if False:\n",
         "data/test_sentence_pairs.py -k refused"),
        ("if len(set(pairs.scores)) < 2:", "if not pairs.scores:",
         "data/test_sentence_pairs.py -k refused"),
    ),
    *faults_in(
        "python/secateurs/data/token_classification.py",
        ("IGNORED if word is None or word == before else", "IGNORED if word is None else",
         "data/test_token_classification.py -k first_piece"),
        ('return [*padding, *label] if side == "left" else [*label, *padding]',
         "return [*label, *padding]",
         "data/test_token_classification.py -k padded_as"),
        ("        if len(words) != len(classes):\n", "        if len(words) < len(classes):\n",
         "data/test_token_classification.py -k malformed"),
        ("            if name != _NO_WORD\n", "", "data/test_token_classification.py -k treebank"),
    ),
    *faults_in(
        "python/secateurs/data/images.py",
        ("            image.load()\n", "            pass\n",
         "data/test_image_classification.py -k no_image"),
        ("    if made != shape:\n", "    if False:\n",
         "data/test_image_classification.py -k must_make"),
        ("random.Random(seed).sample(range(count), min(most, count))",
         "range(min(most, count))", "data/test_images.py -k drawn_by"),
        ("not member.isreg() or member.size > MOST_BYTES", "not member.isreg()",
         "data/test_images.py -k refused"),
        ("if file.stat().st_size > MOST_BYTES:", "if False:", "data/test_images.py -k refused"),
    ),
    *faults_in(
        "python/secateurs/data/image_classification.py",
        ("turns.sort(key=lambda turn: turn[:2])", "turns.sort(key=lambda turn: turn[1])",
         "data/test_image_classification.py -k in_turns"),
        ("            if name not in self.classes:\n", "            if False:\n",
         "data/test_image_classification.py -k must_hold_the_classes"),
        ("type(rows.features[column])(decode=False)", "rows.features[column]",
         "data/test_image_classification.py -k hub"),
    ),
    *faults_in(
        "python/secateurs/data/task_files.py",
        ("    if len(found) != 1:\n", "    if not found:\n",
         "data/test_glue.py -k one_file_of_a_part"),
    ),
    *faults_in(
        "python/secateurs/data/metrics.py",
        ("2 * right / either", "right / either", "data/test_glue.py -k by_hand"),
        ("(2 * last - counts + 1) / 2", "(2 * last - counts) / 2 + counts",
         "data/test_glue.py -k rank_correlation"),
    ),
    *faults_in(
        "python/secateurs/data/batches.py",
        ("            module.training = mode\n", "            pass\n",
         "kinds/test_training_modes.py -k distillation"),
        ("parameter.requires_grad_(flag)", "pass", "kinds/test_training_modes.py -k methods"),
        ('decoded = any(name.startswith("decoder_") for name in batch)', "decoded = False",
         "architectures/test_two_stacks.py -k own_real_tokens"),
        ('if read_by_decoder is not None and "labels" in moved',
         'if False and "labels" in moved',
         "architectures/test_two_stacks.py -k from_both_stacks and kprune"),
    ),
)  # fmt: skip
