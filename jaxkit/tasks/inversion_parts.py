"""What textual inversion is made of: a pipeline's networks, its tokenizers with new words, their first vectors."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Float, Int32, PyTree, UInt8, UInt32

from jaxkit.errors import ConfigError
from jaxkit.inversion import initial, norms
from jaxkit.inversion.embedding_file import embedding_file
from jaxkit.inversion.words import check_spelling, open_words
from jaxkit.models.diffusion import backend
from jaxkit.sampling.diffusion.noise import NoiseSchedule
from jaxkit.schema.textual_inversion import ConceptScore, TextualInversion
from jaxkit.tasks import concepts
from jaxkit.tasks.judges import FrozenClassifier, frozen_classifier
from jaxkit.tasks.task import Context, Variables

Rows = list[Float[Array, "c n d"]]
"""Of each text encoder the vectors of all words."""
_TABLE = ("params", "text_model", "embeddings", "token_embedding", "embedding")
# images that the classifier sees at once, and the seed of the random vectors that a score is compared with
_AT_ONCE, _RANDOM = 100, 2**31 - 1


class Parts:
    """A pipeline opened for new words. Public are the functions and values that the task is put together of.

    Raises:
        ConfigError: for a pipeline that cannot be read, words that cannot be new ones, texts without them, pictures
            of a size that the networks do not take.
    """

    def __init__(self, config: TextualInversion, context: Context):
        if context.read_pipeline is None:
            raise ConfigError("task.pipeline: nothing that reads pipelines was handed to this run")
        self._config, self._context = config, context
        for word in config.words:
            # before gigabytes are downloaded
            check_spelling(word.placeholder_token, "task.words.placeholder_token")
        self._pipeline = pipeline = self._read()
        self._tables = [np.asarray(_at(part.variables, _TABLE), np.float32) for part in pipeline.text_encoders]
        vectors = {word.placeholder_token: config.vectors for word in config.words}
        if len(vectors) < len(config.words):
            raise ConfigError("task.words: two have the same placeholder_token; give each its own")
        self._words = [
            open_words(folder, len(table), vectors, "task.words.placeholder_token")
            for folder, table in zip(pipeline.tokenizers, self._tables, strict=True)
        ]
        self._paths, self.validation_prompts = self._file_names(), self._asked()
        self.zeros_for_empty = pipeline.zeros_for_empty
        self.schedule = NoiseSchedule.from_config(pipeline.scheduler)
        self.models = backend.build(
            config.backend,
            [part.config for part in pipeline.text_encoders],
            pipeline.unet.config,
            pipeline.vae.config,
            dtype=context.dtype,
            # through the text encoders the rows' gradients go, and moments are worked out once and for good
            text_dtype=jnp.float32,
            vae_dtype=jnp.float32,
            remat=config.remat,
            attention=config.attention,
            eos_token_ids=[words.end for words in self._words] if config.pooling == "eos" else None,
        )
        self.shape = self._latent_shape(pipeline.unet.config)
        texts = concepts.texts(config, [concept.captions for concept in context.concepts])
        self._ids = [concepts.ids(words, texts) for words in self._words]
        self._judge = config.score and self._judge_of(config.score)
        self.project = self._projection()
        self.notes = self._said()

    def initial_rows(self, key: UInt32[Array, "2"]) -> Rows:
        """The vectors before training, float32."""
        seed = int(jax.random.bits(key, dtype=jnp.uint32))
        given = [self._given(word) for word in self._config.words]
        return [
            jnp.stack(
                [
                    self._first(i, word, of, seed + k)
                    for k, (word, of) in enumerate(zip(self._config.words, given, strict=True))
                ]
            )
            for i in range(len(self._tables))
        ]

    def frozen(self, key: UInt32[Array, "2"]) -> dict[str, PyTree]:
        """The networks on the device, and the ``cache`` of what follows from them and the data."""
        dtype = self._context.dtype
        # gigabytes, which are not held on the host too once they are on the device
        pipeline, self._pipeline = self._pipeline or self._read(), None
        vae = _cast(pipeline.vae.variables, jnp.float32)
        mirrored, pictures = self._config.flip > 0, [concept.pictures for concept in self._context.concepts]
        cache = concepts.moments(self.models.encode, vae, pictures, mirrored)
        mask = concepts.masks(
            [concept.masks for concept in self._context.concepts],
            [len(array) for array in pictures],
            pictures[0].shape[1],
            self.models.reduction,
            mirrored,
        )
        cache |= {"ids": self._ids, "before": self.initial_rows(key), "random": self._random_rows()}
        found = {
            "unet": _cast(pipeline.unet.variables, dtype),
            # used once a picture and in sampling, where half precision would overflow in released ones
            "vae": vae,
            # the rows are trained in float32, and so are the layers above them
            "text": [_cast(part.variables, jnp.float32) for part in pipeline.text_encoders],
            "cache": cache if mask is None else cache | {"mask": mask},
            "stamp": self._stamp(),
        }
        if self._judge:
            found["classifier"] = self._judge.init(key, jnp.zeros((1, *self._context.image_shape)))
        return found

    def time_ids(self, n: int) -> Float[Array, "n 6"] | None:
        """What Stable Diffusion XL is told of sizes: pictures as they are, not cropped. None for the others."""
        if len(self._tables) == 1:
            return None
        height, width, _ = self._context.image_shape
        return jnp.broadcast_to(jnp.array([height, width, 0, 0, height, width], jnp.float32), (n, 6))

    def read_prompt(self, text: str) -> dict[str, Int32[np.ndarray, " t"]]:
        """The same as :meth:`prompt_ids`.

        Raises ConfigError for a text of which a new word is cut off, or in which ``{}`` is any of several.
        """
        tokens = [word.placeholder_token for word in self._config.words]
        if "{}" in text and len(tokens) > 1:
            raise ConfigError(f"{text!r}: {{}} is the word of a run of one; write {' or '.join(tokens)}")
        for words in self._words:
            words.require_kept(self._filled(text))
        return self.prompt_ids(text)

    def prompt_ids(self, text: str) -> dict[str, Int32[np.ndarray, " t"]]:
        """The ids of a text for each text encoder, ``input_ids_0`` and so on; words become their vectors' ids.

        Where there is one word, ``{}`` stands for it.
        """
        return {f"input_ids_{i}": words(self._filled(text)) for i, words in enumerate(self._words)}

    def files(self, params: PyTree) -> dict[str, bytes]:
        """The learned words as files of diffusers: one a word and text encoder, by name."""
        found = {}
        for k, (word, paths) in enumerate(zip(self._config.words, self._paths, strict=True)):
            token = word.placeholder_token
            about = {
                "format": "pt",
                "token": token,
                "pipeline": Path(self._config.pipeline).name,
                "pooling": self._config.pooling,
            }
            for rows, path in zip(params["rows"], paths, strict=True):
                found[path] = embedding_file(token, np.asarray(rows[k], np.float32), about)
        return found

    def accuracy(self, variables: Variables, images: Callable) -> float:
        """The share of images, ``images(variables, k)`` of word ``k``, that the classifier takes for what it means."""
        right = []
        for k, label in enumerate(self._config.score.labels):
            drawn = images(variables, k)
            logits = [
                self._judge.apply(variables.frozen["classifier"], drawn[i : i + _AT_ONCE])[0]
                for i in range(0, len(drawn), _AT_ONCE)
            ]
            right.append(np.concatenate(logits).argmax(-1) == label)
        return float(np.mean(right))

    def _judge_of(self, score: ConceptScore) -> FrozenClassifier:
        if score.classifier.model.num_classes is None:
            raise ConfigError(
                "task.score.classifier: pictures of concepts do not tell how many classes it has; set "
                "task.model.num_classes in its config, or in classifier.overrides"
            )
        judge = frozen_classifier(score.classifier, self._context)
        if strange := [label for label in score.labels if not 0 <= label < judge.num_classes]:
            raise ConfigError(
                f"task.score.labels: {', '.join(map(str, strange))} is no class of the classifier, which has 0 to "
                f"{judge.num_classes - 1}"
            )
        return judge

    def _stamp(self) -> UInt8[np.ndarray, "32"]:
        """A hash of what a run learns by beside networks and pictures: noise, what is predicted, ids of the texts."""
        total = hashlib.sha256(self.schedule.alphas_cumprod.tobytes() + self.schedule.prediction_type.encode())
        for ids in self._ids:
            total.update(np.asarray(ids).tobytes())
        return np.frombuffer(total.digest(), np.uint8)

    def _filled(self, text: str) -> str:
        tokens = [word.placeholder_token for word in self._config.words]
        return text.replace("{}", tokens[0]) if len(tokens) == 1 else text

    def _asked(self) -> tuple[str, ...]:
        """The texts that samples are drawn of, in which every word that is asked for must be whole."""
        texts = self._config.validation_prompts
        scored = (self._config.score.prompt,) if self._config.score else ()
        for words in self._words:
            for token in words.vectors:
                words.require_room((text.replace("{}", token) for text in (*texts, *scored) if "{}" in text), token)
        tokens = [word.placeholder_token for word in self._config.words]
        return tuple(text.replace("{}", token) for text in texts for token in (tokens if "{}" in text else tokens[:1]))

    def _file_names(self) -> list[list[str]]:
        """The file of each word's rows, for each text encoder."""
        tokens, found = [word.placeholder_token for word in self._config.words], {}
        for token in tokens:
            plain = "".join(sign for sign in token if sign.isalnum() or sign in "-_")
            name = f"learned_embeds-{plain}" if len(tokens) > 1 else "learned_embeds"
            for i in range(len(self._tables)):
                path = f"{name}{f'_{i + 1}' * (i > 0)}.safetensors"
                if path in found:
                    raise ConfigError(
                        f"task.words: {found[path]} and {token} would both be saved as {path}; rename one of them"
                    )
                found[path] = token
        return [[path for path, owner in found.items() if owner == token] for token in tokens]

    def _read(self) -> Any:
        return self._context.read_pipeline(self._config.pipeline, self._config.variant, self._config.revision)

    def _latent_shape(self, unet: Mapping[str, Any]) -> tuple[int, int, int]:
        side, reduction = self._context.image_shape[0], self.models.reduction
        whole = reduction * 2 ** (len(unet["block_out_channels"]) - 1)
        if side % whole:
            raise ConfigError(
                f"data.image_size: {side} pixels are not reduced by {whole}; the nearest size that is, is "
                f"{max(1, round(side / whole)) * whole}"
            )
        return side // reduction, side // reduction, unet.get("in_channels", 4)

    def _given(self, word) -> tuple[np.ndarray, ...] | None:
        return word.init_from and self._context.read_embedding(word.init_from, word.placeholder_token)

    def _first(self, i: int, word, given, seed: int) -> Float[np.ndarray, "n d"]:
        """The first vectors of a word for one text encoder."""
        table, count = self._tables[i], self._config.vectors
        if given is not None:
            if len(given) != len(self._tables):
                raise ConfigError(
                    f"{word.init_from} is of {len(given)} text encoders, the pipeline has {len(self._tables)}"
                )
            return initial.given_rows(given[i], table, count)
        if word.initializer_token is not None:
            return initial.phrase_rows(table, self._words[i], word.initializer_token, count)
        return initial.random_like(table, count, seed)

    def _random_rows(self) -> Rows:
        count, n = len(self._config.words), self._config.vectors
        return [
            jnp.asarray(initial.random_like(table, count * n, _RANDOM)).reshape(count, n, -1) for table in self._tables
        ]

    def _projection(self) -> Callable:
        norm = self._config.norm
        if norm is None:
            return lambda params: params
        each = [_kept(norm, table) for table in self._tables]
        return lambda params: {"rows": [jax.vmap(keep)(rows) for keep, rows in zip(each, params["rows"], strict=True)]}

    def _said(self) -> tuple[str, ...]:
        config, widths = self._config, [table.shape[1] for table in self._tables]
        rows = f"{config.vectors} vector{'s' * (config.vectors > 1)} of {' and '.join(map(str, widths))} numbers"
        lines = [f"{word.placeholder_token}: {rows}" for word in config.words]
        if len(widths) > 1 and config.pooling == "config":
            lines.append(
                "warning: the pooled text is taken at the new word, as torch does in sampling; task.pooling: eos "
                "takes it at the end of the text"
            )
        return tuple(lines)


def _kept(norm, table: np.ndarray) -> Callable:
    """``rows [n d] -> rows`` with the lengths that the section asks for."""
    match norm.kind:
        case "median":
            return partial(norms.median, target=norms.median_norm(table))
        case "decay":
            return partial(norms.decay, target=norm.target, rate=norm.rate)
    return partial(norms.std, target=norms.table_std(table))


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _cast(tree: PyTree, dtype: Dtype) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
