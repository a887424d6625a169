"""Start Points: scales from observers, weights rounded on inputs."""
