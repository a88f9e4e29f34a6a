"""Compares a model with its torch twin, layer by layer; run with --help."""

import argparse
import shutil
import sys
from pathlib import Path

from jaxkit.cli import reported

parser = argparse.ArgumentParser(
    description="Runs a model and its torch twin on the same weights and images: each layer, each gradient, training.",
    epilog="exit codes: 0 passed, 2 usage, 3 not passed or weights of another model, 4 unsafe or damaged file",
)
parser.add_argument(
    "--model", required=True, metavar="NAME", help="of the zoo, such as resnet50; or a config.json of Stable Diffusion"
)
parser.add_argument(
    "--weights", type=Path, metavar="FILE", help="torch's or ours, a folder of Stable Diffusion; default: random"
)
parser.add_argument("--html", type=Path, metavar="OUT", help="write the report as a page with plots")
parser.add_argument("--json", type=Path, metavar="OUT", help="write the report's numbers")
parser.add_argument(
    "--image-size", type=int, metavar="N", help="default: the model's own, 64 or 96 where that is large"
)
parser.add_argument("--batch", type=int, default=4, metavar="N", help="images, at least 2; default: 4")
parser.add_argument("--dtype", choices=("f32", "bf16", "f16"), default="f32", help="both sides run in; default: f32")
parser.add_argument("--steps", type=int, default=3, metavar="N", help="of training; 0: forward only; default: 3")
parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, images and labels; default: 0")
parser.add_argument("--force", action="store_true", help="replace existing files")


def main() -> int:
    """Parses, then imports what is heavy."""
    arguments = parser.parse_args()
    from interop.files.atomic import require_free
    from interop.files.torch_files import require_torch

    require_free([path for path in (arguments.html, arguments.json) if path], arguments.force)
    require_torch()
    from interop import crosscheck
    from interop.parity.twins import twins
    from jaxkit.tracking import write_atomically

    pair = twins(
        arguments.model, arguments.weights, arguments.image_size, arguments.batch, arguments.seed, arguments.dtype
    )
    options = {"dtype": arguments.dtype, "steps": arguments.steps, "seed": arguments.seed}
    report = crosscheck(pair.torch, pair.flax, pair.table, pair.inputs, **options)
    print(report.table(shutil.get_terminal_size((120, 0)).columns))
    if arguments.html:
        report.html(arguments.html)
    if arguments.json:
        write_atomically(arguments.json, report.json())
    return 0 if report.passed else 3


if __name__ == "__main__":
    with reported("before anything was written"):
        sys.exit(main())
