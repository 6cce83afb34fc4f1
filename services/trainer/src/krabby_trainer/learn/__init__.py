"""Networks, PPO, distillation, fine-tuning."""
