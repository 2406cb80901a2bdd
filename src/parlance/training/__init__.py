"""Objective + data + optimizer -> weights.

- `pretraining`: `pretrain(train, validation, folder, PretrainingConfig(), Budget(seconds=200), ...)`
- `trainer`: `Trainer`, a step of any objective; `loop`: `Loop`, `Budget`: budgets, resume states, orderly stops
- `objectives`: `Objective`, `LossTerms`, `NextTokenObjective`; `batching`: `LengthGroupedBatches`
- `optimizers`: `Optimizer` (AdamW, Muon); `rates`: `LearningRates`; `schedules`: `trapezoid`
- `checkpointing`: `TrainingStates`; `compilation`: `compile_training`
"""
