"""How big, how long, how much; pure arithmetic, imports no torch.

- `power_law`: `fit_power_law(x, loss)`, `PowerLaw`, `training_flops`
- `energy`: `EnergyMeter`, `estimate(cpu_seconds)`
"""
