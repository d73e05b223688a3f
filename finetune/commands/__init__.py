"""The command line of `finetune`: a file for each command, which calls a function of the package and prints what it returns."""
