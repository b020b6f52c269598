"""`python -m deeplab_jax VERB ...`; see `deeplab_jax.cli`."""

from deeplab_jax.cli import command

if __name__ == "__main__":
    command()
