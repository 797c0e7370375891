"""What every station agrees on: messages, their bytes, the seams, settings, metrics and errors."""
