"""How much memory and time a distillation takes, before anything is bought: arithmetic alone.

Nothing here imports torch.
"""
