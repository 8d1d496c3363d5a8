"""`secateurs export`: the compact model of a pruned folder, for another runtime."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from secateurs.cli.paths import new_directory
from secateurs.cli.shapes import add_timing, timed_shapes
from secateurs.cli.terminal import OK, quiet

SUMMARY = "write a pruned model folder for torch alone, ONNX Runtime or OpenVINO"
EXAMPLE = "secateurs export pruned --to onnx --out exported"
TARGETS = ("torch", "onnx", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder, the runtime, and the shapes to time it on."""
    parser.add_argument("model", metavar="DIR", help="the pruned model folder")
    parser.add_argument("--to", required=True, choices=TARGETS, help="what will run it")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="a new folder for the file and what makes its inputs",
    )
    add_timing(parser)


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Write, compare outputs, and print sizes and times beside those of the converted model."""
    from secateurs.cli.tables import table
    from secateurs.integrations.exported import export
    from secateurs.measurement.timing import measure
    from secateurs.storage.model_folders import copy_processors, tokenizer_in

    quiet()
    out = new_directory(options.out)
    made = export(options.model, options.to, out, options.shapes or ())
    copy_processors(options.model, out, tokenizer_in(options.model))
    rows = []
    for size in timed_shapes(options, made.compact):
        took = measure(
            lambda **batch: made.run(batch),
            made.inputs(size),
            lambda **batch: made.converted(batch),
            min_time=options.min_time,
            settle=0.0 if options.to == "torch" else 0.02,
            compare=False,
        )
        assert took.baseline is not None
        rows.append(
            {
                "shape": list(size),
                "converted_ms": took.baseline.ms,
                "exported_ms": took.timing.ms,
                "ratio": took.speedup,
            }
        )
    columns = {
        "shape": "batch x tokens",
        "converted_ms": "converted ms:.2f",
        "exported_ms": f"{options.to} ms:.2f",
        "ratio": "converted / exported:.2f",
    }
    sizes = {"converted_bytes": _bytes(Path(options.model)), "exported_bytes": _bytes(out)}
    print(table(rows, columns))
    print(
        f"\n{sizes['exported_bytes'] / 1e6:.1f} MB, the pruned folder has "
        f"{sizes['converted_bytes'] / 1e6:.1f} MB; outputs differ by {made.error:.1e}\n"
        f"saved to {made.path}"
    )
    return OK, {
        "out": str(out),
        "file": made.path.name,
        "to": options.to,
        "output": made.output,
        "rel_err": made.error,
        **sizes,
        "rows": rows,
    }


def _bytes(folder: Path) -> int:
    """Bytes of the models in a folder: all but texts."""
    files = (path for path in folder.iterdir() if path.is_file())
    return sum(path.stat().st_size for path in files if path.suffix not in (".json", ".md", ".txt"))
