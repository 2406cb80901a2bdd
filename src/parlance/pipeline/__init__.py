"""Recipes -> a run directory -> a report.

- `run`: `run_pipeline(Recipe(), out, resume=False, command=...)`; `recipe`: `Recipe`; `run_directory`: `RunDirectory`
- `stages`: one function a stage; `evaluation`: `evaluate_run`; `division`: `divide_prompts`
- `report`: `write_report(run_directory)`
"""
