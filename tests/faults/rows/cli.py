"""Faults of `cli`."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
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
        "python/secateurs/cli/commands/prune_task.py",
        ("distillation=Distillation() if options.imitate else None", "distillation=None",
         "training/test_task_recipe.py -k changes_the_run"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/demo.py",
        ('(OK if result["ok"] else FAILED)', "OK", "cli/test_demo.py -k failed_check"),
    ),
    *faults_in(
        "python/secateurs/cli/demo.py",
        ("return torch.equal(load_file(outputs)", "return True or torch.equal(load_file(outputs)",
         "cli/test_demo.py -k one_bit"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/frontier.py",
        ("*((f\"{row['target']:g}x\", row[\"speedup\"], row[quality]) for row in results)",
         "*((f\"{row['target']:g}x\", row[\"speedup\"], row[\"cosine\"]) for row in results)",
         "cli/test_timed_pruning.py -k shows_the_score"),
    ),
    *faults_in(
        "python/secateurs/cli/tasks.py",
        ("    if not has_classifier(options.model, task.head):\n", "    if False:\n",
         "cli/test_timed_pruning.py -k one_source"),
    ),
)  # fmt: skip
