"""Faults of `cli`."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
    *faults_in(
        "python/secateurs/cli/calibration.py",
        ('    if model.main_input_name != "pixel_values":\n', "    if False:\n",
         "cli/test_image_models.py -k other_data"),
        ("random.Random(options.seed).shuffle(training)", "training.reverse()",
         "cli/test_calibration.py -k order_of_the_seed"),
    ),
    *faults_in(
        "python/secateurs/cli/shapes.py",
        ("tokens_of_an_input(model) or tokens", "tokens",
         "cli/test_image_models.py -k tokens_that_images_have"),
    ),
    *faults_in(
        "python/secateurs/cli/results.py",
        ("processor = processor or tokenizer_in(source)", "pass",
         "cli/test_image_models.py -k without_data"),
    ),
    *faults_in(
        "python/secateurs/cli/main.py",
        ("        return BAD_INPUT\n    except OSError", "        return OK\n    except OSError",
         "cli/test_cli_refusals.py -k one_sentence"),
        ('return ["prune-task", *words[1:]]', "return words", "cli/test_cli.py -k of_before"),
    ),
    *faults_in(
        "python/secateurs/cli/arguments.py",
        ("is not None and not has_effect:", "is not None and False:",
         "cli/test_cli_refusals.py -k one_sentence"),
        ("if len(words) < len(pairs):", "if False:", "cli/test_cli_refusals.py -k one_sentence"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/methods.py",
        ('["labels"] if method.pruner.labelled', '["labels"] if False',
         "cli/test_cli.py -k of_the_table"),
    ),
    *faults_in(
        "python/secateurs/cli/paths.py",
        ("if out.exists() and not (out.is_dir() and not any(out.iterdir())):", "if False:",
         "cli/test_cli_refusals.py -k folder_in_use"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/prune.py",
        ("    if options.distill:\n        recovered", "    if False:\n        recovered",
         "cli/test_cli.py -k distils"),
        ('"allocator": options.allocator, **values', '"allocator": None, **values',
         "cli/test_cli.py -k allocator_can_be_chosen"),
    ),
    *faults_in(
        "python/secateurs/cli/main.py",
        ('if "_ARGCOMPLETE" in os.environ:', "if True:", "cli/test_cli.py -k comes_next"),
        ("with suppress(ImportError):", "if True:", "cli/test_cli.py -k comes_next"),
        ("        epilog=EXIT_STATUSES,\n", "", "cli/test_cli.py -k every_exit_status"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/export.py",
        ("export pruned --to onnx --out", "export pruned --out", "cli/test_cli.py -k can_be_read"),
    ),
    *faults_in(
        "python/secateurs/cli/terminal.py",
        ("c if c.isprintable() else", "c if True else", "cli/test_report.py -k strangers"),
    ),
    *faults_in(
        "python/secateurs/cli/markup.py",
        ("return escape(printable(text))", "return printable(text)",
         "cli/test_report.py -k strangers_words"),
        ("_escaped(value)", "value", "cli/test_report.py -k escaped_and_elements"),
    ),
    *faults_in(
        "python/secateurs/cli/html_report.py",
        ("default-src 'none'", "default-src *", "cli/test_report.py -k fetches_nothing"),
        ("if len(text) <= MOST_CHARACTERS:", "if True:", "cli/test_report.py -k strangers_words"),
        ("_bar(kept / max(1, before), part)", "_bar(kept / max(1, kept), part)",
         "cli/test_report.py -k what_is_left"),
    ),
    *faults_in(
        "python/secateurs/cli/html_report.css",
        (".bar svg { display: block; width: 100%; height: .9rem;", ".bar svg { height: 0;",
         "cli/test_report_in_browser.py -k shows_its_bars"),
        (".wide { overflow-x: auto; }\n", "td { white-space: nowrap; }\n",
         "cli/test_report_in_browser.py -k fits_the_screen"),
        ("@media (prefers-color-scheme: dark)", "@media print",
         "cli/test_report_in_browser.py -k is_dark"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/report.py",
        ("    if not is_pruned(folder):\n", "    if False:\n",
         "cli/test_report.py -k stock_folder"),
        ('    check_file("--html", options.html)\n', "", "cli/test_report.py -k before_the_work"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/measure.py",
        ("if options.baseline is None and not options.profile:", "if False:",
         "cli/test_cli.py -k only_a_baseline"),
        ('("task", "text", "images", "pairs", "card"), against)', '("task",), against)',
         "cli/test_cli.py -k only_a_baseline"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/inspect.py",
        ('    check_file("--picture", options.picture)\n', "", "cli/test_tables.py -k kept_parts"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/prune_task.py",
        ("distillation=Distillation() if options.imitate else None", "distillation=None",
         "training/test_task_recipe.py -k changes_the_run"),
        ("processor, options.model, out, measured_here", 'processor, "", out, measured_here',
         "integrations/test_sentence_transformers.py -k stays_one"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/demo.py",
        ('(OK if result["ok"] else FAILED)', "OK", "cli/test_demo.py -k failed_check"),
    ),
    *faults_in(
        "python/secateurs/cli/demo.py",
        ("if LESS * speedup < LEAST_SPEEDUP:", "if False:", "cli/test_demo.py -k asks_for_less"),
        ("speedup *= LESS\n", "speedup *= LESS * LESS\n", "cli/test_demo.py -k asks_for_less"),
        ("return torch.equal(load_file(outputs)", "return True or torch.equal(load_file(outputs)",
         "cli/test_demo.py -k one_bit"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/frontier.py",
        ("*((f\"{row['target']:g}x\", row[\"speedup\"], row[quality]) for row in results)",
         "*((f\"{row['target']:g}x\", row[\"speedup\"], row[\"cosine\"]) for row in results)",
         "cli/test_frontier.py -k shows_the_score"),
        ("ranked if pairs else lambda _: {}", "lambda _: {}",
         "cli/test_frontier.py -k judged_by_pairs"),
        ('if row["precision"] == own]', "]", "cli/test_frontier.py -k drawn_where_it_is_exact"),
        ("for row in peers if quality in row]", "for row in peers]",
         "cli/test_frontier.py -k another_precision"),
        ("print_figures(results + peers,", "print_figures(results,",
         "cli/test_frontier.py -k that_are_installed"),
    ),
    *faults_in(
        "python/secateurs/cli/dense_peers.py",
        ("        check_installed(PEERS", "        (PEERS", "cli/test_frontier.py -k pip_line"),
        ("if name != COMPILED", "if True", "cli/test_frontier.py -k that_are_installed"),
        ("if options.peers is None else", "if not options.peers else",
         "cli/test_frontier.py -k none_is_named"),
        ("**({} if peer.precision else scores)", "**scores",
         "cli/test_frontier.py -k another_precision"),
        ("except SecateursError as error:", "except ZeroDivisionError as error:",
         "cli/test_frontier.py -k that_are_installed"),
    ),
    *faults_in(
        "python/secateurs/cli/pictures.py",
        ("(round(point[1], 2), round(point[2], 3))", "point[1:]",
         "cli/test_frontier.py -k share_a_label"),
        ('value, "s", markersize', 'value, "o", markersize',
         "cli/test_tables.py -k mark_of_their_own"),
    ),
    *faults_in(
        "python/secateurs/cli/embeddings.py",
        ("next(filter(is_sentence_folder, folders), None)", "None",
         "integrations/test_sentence_transformers.py -k pairs_are_ranked"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/measure.py",
        ("    if not may_be_written(Path(folder)):\n", "    if False:\n",
         "cli/test_measure.py -k changed"),
        ("    if not is_pruned(folder):\n", "    if False:\n", "cli/test_measure.py -k changed"),
        ("        _write_card(options, model, result)", "        pass",
         "cli/test_measure.py -k into_the_card"),
    ),
    *faults_in(
        "python/secateurs/cli/tasks.py",
        ("    if not has_classifier(options.model, task.head):\n", "    if False:\n",
         "cli/test_frontier.py -k one_source"),
    ),
)  # fmt: skip
