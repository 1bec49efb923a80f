"""Programs that look at a machine, a config, data or a network: each is what a script of scripts/ calls."""
