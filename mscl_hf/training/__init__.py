"""The training loop and what it needs: options, optimizer, processes, checkpoints, logs, health checks."""
