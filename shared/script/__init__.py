"""Self-contained scripts: one file that holds what training or scoring on one engine needs of this source, and runs.

house    modules as stripped syntax trees, by name
reach    what a program uses of them
strip, rename, emit    the same program in fewer characters
boot     the end of the file: imports modules from the text in it
build    the whole file
memory   what was built before
module   a module of the house as one file for others, in plain text
"""
