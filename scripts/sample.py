"""Draws images from a checkpoint of a run; run with --help."""

import argparse
from pathlib import Path

from jaxkit.cli import margins, reported
from jaxkit.errors import ConfigError

parser = argparse.ArgumentParser(description="Draws images from a run and writes them as one grid, or one by one.")
parser.add_argument("overrides", nargs="*", metavar="task.sampler.KEY=VALUE", help="how to draw")
parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="the folder of the run")
parser.add_argument("--out", type=Path, metavar="FILE.png", help="gets all images as one grid")
parser.add_argument("--folder", type=Path, metavar="DIR", help="gets each image as a file of its own")
parser.add_argument("--n", type=int, default=16, help="how many images; default 16")
parser.add_argument("--class", type=int, dest="label", metavar="N", help="the class of all; default: all in turn")
parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a caption; several: in turn")
parser.add_argument("--image", type=Path, metavar="FILE", help="one to be changed, in one of the next three ways")
parser.add_argument("--mask", type=Path, metavar="FILE", help="white where the image is painted anew")
parser.add_argument("--strength", type=float, metavar="S", help="image to image: how much is drawn again, up to 1")
parser.add_argument("--outpaint", type=margins, metavar="LEFT,RIGHT,TOP,BOTTOM", help="pixels painted around it")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--step", type=int, metavar="N", help="the checkpoint; default: the best")
parser.add_argument("--force", action="store_true", help="overwrite what is there")


def main() -> None:
    """Parses, then imports what is heavy."""
    arguments = parser.parse_args()
    if arguments.out is None and arguments.folder is None:
        raise ConfigError("nothing would be written: give --out FILE.png, --folder DIR or both")
    if arguments.n < 1:
        raise ConfigError(f"--n {arguments.n}: give 1 or more")
    from interop.starts import READERS
    from jaxkit import pictures
    from jaxkit.inference import sample_run

    pictures.require_free(arguments.out, arguments.folder, arguments.force)
    images = sample_run(
        arguments.workdir,
        arguments.n,
        step=arguments.step,
        seed=arguments.seed,
        label=arguments.label,
        prompts=tuple(arguments.prompt),
        image=arguments.image and pictures.read(arguments.image),
        mask=arguments.mask and pictures.read(arguments.mask)[..., 0],
        strength=arguments.strength,
        outpaint=arguments.outpaint,
        overrides=tuple(arguments.overrides),
        readers=READERS,
    )
    for path in pictures.write(images, arguments.out, arguments.folder):
        print(path)


if __name__ == "__main__":
    with reported("before all was written"):
        main()
