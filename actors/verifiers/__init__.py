"""What a response is worth: judged in processes that may be killed."""
