"""The tasks by name: ``TASKS[name]`` is the file, here and in ``jaxkit.schema``, that defines it."""

TASKS = {
    "classify": "classify",
    "distill": "distill",
    "spiking": "spiking",
    "spiking_stdp": "spiking_stdp",
    "tokenizer": "tokenizer",
    "maskgit": "maskgit",
    "autoencoder": "autoencoder",
    "text_to_image": "text_to_image",
    "textual_inversion": "textual_inversion",
}
