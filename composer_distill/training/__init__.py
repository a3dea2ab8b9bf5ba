"""What happens in a Trainer: the only room that answers events, writes State or logs."""
