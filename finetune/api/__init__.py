"""The Python functions of `finetune`: what a command does, one call does. Import them from `finetune`, not from here."""
