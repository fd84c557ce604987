"""Oracle data computed by other people's code, held against `mj.memorize`."""
