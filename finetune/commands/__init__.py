"""The command line of `finetune`: one file for each command; each calls a function of the package and prints what it returns."""
