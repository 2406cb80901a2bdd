"""Objective + data + optimizer -> weights.

- `pretraining`: `pretrain(train, validation, folder, PretrainingConfig(), Budget(seconds=200), ...)`
- `trainer`: `Trainer`, a step of any objective; `loop`: `Loop`, `Budget`: budgets, resume states, orderly stops
- `objectives`: `Objective`, `LossTerms`, `NextTokenObjective`; `batching`: `LengthGroupedBatches`
- `optimizers`: `Optimizer` (AdamW, Muon); `rates`: `LearningRates`; `schedules`: trapezoid, cosine, linear
- `checkpointing`: `TrainingStates`; `saving`: `Saver`, in a thread; `compilation`: `compile_training`
- `gradients`: `Gradients`; `memory_fit`: batches that do not fit; `precision`, `loss_scaling`: fp32, bf16, fp16
- `anomalies`: `Guard`, steps that would do harm; `averaging`: `WeightAverage`; `loss_target`: `LossTarget`
- `throughput`: `Speed`, tokens a second and MFU
"""
