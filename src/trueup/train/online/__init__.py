"""Learning from the policy's own answers: PPO, RLOO, GRPO, Dr. GRPO and online DPO.

Not a stage of its own: `train.run` comes here for these methods.
"""
