"""Both modules that a name on the command line means: of the zoo, or of a config.json."""

from pathlib import Path

from interop.configs import class_of, is_diffusion, read_config
from interop.parity.zoo import Twins, classifier_twins
from jaxkit.errors import ConfigError


def twins(name: str, weights: Path | None, image_size: int | None, batch: int, seed: int, dtype: str) -> Twins:
    """Builds a model and its torch twin as :func:`interop.parity.zoo.classifier_twins`.

    ``name`` may also be the path of a config.json of Stable Diffusion, as for
    :func:`interop.parity.diffusion.diffusion_twins`, whose arithmetic is in ``dtype``.

    Raises:
        ConfigError: if there is no such model, or no torch twin of it; and what these two raise.
    """
    if not name.endswith(".json"):
        return classifier_twins(name, weights, image_size, batch, seed)
    config = read_config(Path(name))
    if not is_diffusion(config):
        raise ConfigError(
            f"--model {name}: there is no torch twin of a {class_of(config)} here; call interop.crosscheck with one"
        )
    # diffusers takes seconds to import
    from interop.parity.diffusion import diffusion_twins

    return diffusion_twins(config, weights, image_size, batch, seed, dtype)
