"""The command line: one thin file a command; the work is done by the floors below.

- `main`: `main(arguments)`, the entry point: the commands' names, exit codes, one-sentence errors
- `run`, `corpus`, `tokenizer`, `pretrain`, `finetune`, `reward`, `align`, `generate`, `score`, `chat`: the commands
- `options`: the options they share; `inputs`: from what was typed to what the stages take
- `stage_folder`: the output folder of a single stage; `results`: what is printed at the end
- `conversation`: the memory of `parlance chat`

Only typer, rich and the standard library are imported at start-up; everything else inside the command functions.
"""
