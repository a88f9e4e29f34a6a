"""Stable Diffusion's folders, as diffusers writes them: ``folders.load_pipeline(path)``, or a part; and back."""
