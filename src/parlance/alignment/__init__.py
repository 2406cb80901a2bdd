"""Preferences -> reward -> policy.

- `preferences`: `Ranking`, `read_rankings(path)`, `pairs`; `labeller`: the simulated labeller's `score` and `rank`
- `reward_model`: `RewardModel`, `train_reward_model(...)`, `load_reward_model`; `reward`: `Reward`, `load_reward`
- `ppo`: `PPOTrainer`, `PPOConfig`; `ppo_math`: its losses, advantages and divergences as pure functions
"""
