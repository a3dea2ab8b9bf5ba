"""What ``composer-distill demo --real`` runs: a language model that is cut and recovers."""
