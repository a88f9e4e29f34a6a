"""Measures the layers of a model, or compares a training compiled and op by op; run with --help."""

import argparse
import sys
from pathlib import Path

from jaxkit.cli import reported
from jaxkit.config import load

parser = argparse.ArgumentParser(
    description="Measures each layer of a model; or, with --compare-eager, a training compiled and op by op.",
    epilog="exit codes: 0 done, 2 usage, 3 compiled and op by op differ",
    argument_default=argparse.SUPPRESS,
)
model = parser.add_argument_group("time, parameters, multiply-accumulates and outputs of each layer of a model")
model.add_argument("--model", metavar="NAME", help="a name of the zoo, such as resnet50")
for flag, text in (
    ("batch", "images; default: 8"), ("image-size", "default: the model's own"),
    ("num-classes", "default: 1000, or 100 where images are small"),
    ("iterations", "whose median is taken; default: 10"), ("depth", "of layers; default: the innermost modules"),
):  # fmt: skip
    model.add_argument(f"--{flag}", type=int, metavar="N", help=text)
model.add_argument("--train", action="store_true", help="batch statistics and dropout as in training")
model.add_argument("--dtype", choices=("f32", "bf16"), help="of the arithmetic; default: f32")
training = parser.add_argument_group("the first steps of a training, compiled and op by op")
training.add_argument("--compare-eager", action="store_true", help="train twice, once under jax.disable_jit")
training.add_argument("--config", metavar="FILE", help="as for train.py")
training.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="as for train.py")
training.add_argument("--steps", type=int, metavar="N", help="2 or more; default: 5")
parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers")
parser.add_argument("--force", action="store_true", default=False, help="replace an existing OUT")


def main() -> int:
    """Parses, then imports what is heavy."""
    given = vars(parser.parse_intermixed_args())
    out, force, overrides = given.pop("json"), given.pop("force"), tuple(given.pop("overrides"))
    compares = given.pop("compare_eager", False)
    misplaced = given.keys() - {"config", "steps"} if compares else given.keys() & {"config", "steps"} or overrides
    if misplaced or ("config" if compares else "model") not in given:
        parser.error("give --model and its flags, or --compare-eager, --config, its section.key=value and --steps")
    from interop.files.atomic import require_free
    from jaxkit.eager import compare
    from jaxkit.profile import profile_model
    from jaxkit.tracking import write_atomically

    require_free([out] if out else [], force)
    if compares:
        result = compare(load(given.pop("config"), overrides), **given)
    else:
        result = profile_model(given.pop("model"), given.pop("batch", 8), **given)
    print(result.table())
    if out:
        write_atomically(out, result.json())
    return 3 if compares and not result.agrees else 0


if __name__ == "__main__":
    with reported("before anything was written"):
        sys.exit(main())
