"""How big, how long, how much; pure arithmetic, imports no torch.

Laws and fits:

- `laws`: Kaplan's and Chinchilla's published laws, `CORRECTED`; optimum of a budget, critical batch
- `loss_surface`: `fit_loss_surface(parameters, tokens, loss) -> LossSurface` with intervals and an honest status
  (`surface_newton` descends, `variable_projection` finds where to start)
- `frontier`: best sizes from isoFLOP parabolas and from the envelope of training curves; `isoflop_chart` draws them
- `power_law`: `fit_power_law(x, loss)`, one budget, two or three pilots
- `runs_file`: tables of runs

Plans:

- `planner`: `make_plan(shape, tokens=..., accelerator=..., devices=...) -> Plan`; `plan`: what follows from a layout
- `model_shape`: sizes, parameters, operations; `derive_shape(65e9)`
- `layouts`, `device_memory`, `collectives`, `step_time`: how to divide a model, what a device holds, how long transfers
  and steps take
- `accelerators`: the table of devices; `sizing`, `quantities`: from budgets and words to sizes

Measured:

- `energy`: `EnergyMeter`, processors by RAPL and GPUs by NVML (`nvml`), else an estimate labelled as one
"""
