"""The ``train`` and ``tracking`` sections: how long, on what, how often something is written."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxkit.schema.section import Count, CountOrZero, Epochs, Misfit, Section


class EarlyStop(Section):
    """Ends a run whose evaluations change no more than they do by chance."""

    window: Annotated[int, Field(ge=2, lt=2**31)] = 310
    """Evaluations that are compared with all before."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The variance of the last, over that of all, below which it ends."""


class Train(Section):
    """Length, seed, cadence and arithmetic of a run."""

    steps: Count | None = None
    """Updates of the parameters."""
    epochs: Epochs | None = None
    """Passes over the training data, instead of steps."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    log_every: Count = 50
    log_gradients: bool = False
    """Logs the norm of each parameter's gradient too, as ``grad_norm/<path>``."""
    eval_every: Count = 500
    sample_every: Count | None = None
    """Updates between samples and pictures, a multiple of ``eval_every``. None: at each evaluation."""
    checkpoint_every: Count = 500
    keep_last: Count = 2
    keep_best: CountOrZero = 1
    best_metric: str | None = None
    """Evaluation metric that ranks checkpoints. None: the task's first."""
    early_stop: EarlyStop | None = None
    """By the metric that ranks checkpoints. None: all steps are taken."""
    parallel: Literal["jit", "pmap"] = "jit"
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Arithmetic of the layers; parameters, statistics, losses and the optimizer stay float32."""
    matmul_precision: Literal["default", "high", "highest"] = "default"
    """JAX's precision of float32 products: on GPUs ``default`` is TF32, ``highest`` is float32."""
    sync_batch_norm: bool = True
    """Batch statistics over all devices; without it each device normalises by its own examples."""

    @model_validator(mode="after")
    def _one_length(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs: one of them")
        if self.sample_every is not None and self.sample_every % self.eval_every:
            raise Misfit({"sample_every": f"{self.sample_every} is no multiple of eval_every = {self.eval_every}"})
        return self


class Wandb(Section):
    """Weights & Biases run to log to."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class Tracking(Section):
    """Where metrics go besides metrics.jsonl and results.json."""

    progress: bool = True
    tensorboard: bool = True
    wandb: Wandb | None = None
