"""The worked example behind ``composer-distill demo``: real data, the real Trainer."""
