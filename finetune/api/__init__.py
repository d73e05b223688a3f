"""The Python face of `finetune`: what a command does, one call does. Import its names from `finetune` itself, not from here."""
