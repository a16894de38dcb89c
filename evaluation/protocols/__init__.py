"""The evaluations behind the commands: run, result, text."""
