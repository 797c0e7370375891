"""Rollout actors: they sample, verify and report; one engine each, fed by leases."""
