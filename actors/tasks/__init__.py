"""Where prompts come from: generated problems and files."""
