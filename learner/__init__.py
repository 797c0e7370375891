"""The learner's station: groups and coefficients in, one optimizer step and a published policy out."""
