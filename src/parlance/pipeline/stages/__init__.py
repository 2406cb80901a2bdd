"""The stages of a run: each a function from folders to one folder, used by `parlance run` and by the single commands.

Every function returns a small dictionary of facts (for the summary) and raises UserError or Interrupted. Folders are
complete when the function returns; what a killed process left is replaced or resumed by the next call.

`corpus`, `docstring_demonstrations`, `user_data`, `rankings`, `instruction`, `reward`, `policy`: what each makes;
`opening`, `sampling`: what they share. The base model's stage is `pipeline/base_model.py`.
"""
