"""One file = one experiment. Packaged as vit_jax.configs, so that --config=digits works from a wheel."""
