"""The distillation term of a microbatch: what of student and teachers is compared."""
